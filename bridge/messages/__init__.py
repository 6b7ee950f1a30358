"""The language of the bus: what subscribers and callers see (the public contract). Never does I/O."""
