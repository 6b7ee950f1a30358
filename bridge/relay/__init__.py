"""The two paths: events from a link to the bus, requests from the bus to a pool. Knows no broker by name."""
