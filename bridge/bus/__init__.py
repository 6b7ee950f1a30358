"""Brokers behind one small interface: opaque bytes and headers. Knows no ESL."""
