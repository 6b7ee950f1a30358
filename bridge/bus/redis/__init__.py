"""Redis and Valkey as the bus: pub/sub topics, streams or reliable lists as queues, lists for replies."""

from __future__ import annotations

from bridge.bus.redis.bus import RedisBus

__all__ = ["RedisBus"]
