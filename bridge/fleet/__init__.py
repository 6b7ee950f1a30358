"""Many workers, many nodes: who a worker is, and what it owns."""
