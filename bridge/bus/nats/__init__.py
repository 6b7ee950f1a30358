"""The NATS side of the bus, JetStream included. Imports nats-py; knows nothing of Redis."""

from bridge.bus.nats.address import NatsFiles
from bridge.bus.nats.bus import NatsBus

__all__ = ["NatsBus", "NatsFiles"]
