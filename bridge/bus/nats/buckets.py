"""JetStream KV buckets by the plain JetStream API: made, read, written by revision. Never keeps a copy.

File storage and a bucket-wide TTL only: servers before 2.11 accept a TTL per key and ignore it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bridge.bus.nats.inbox import is_no_responders
from bridge.bus.nats.questions import Questions, Unanswered
from bridge.bus.nats.reading import Incoming, parse_headers
from bridge.errors import BusRefused, BusUnavailable

API = "$JS.API."
TIMEOUT = 3.0
"""Seconds after which a silent server counts as away."""
CREATE_TIMEOUT = 10.0

_STREAM_NOT_FOUND, _IN_USE, _NO_MESSAGE, _WRONG_REVISION = 10059, 10058, 10037, 10071
_OPERATION = "KV-Operation"
_REVISION = "Nats-Expected-Last-Subject-Sequence"


class Conflict(Exception):
    """Somebody else wrote the key meanwhile; nothing was written."""


class Kept(NamedTuple):
    """A value as the bucket has it. ``at`` is Unix time by the server's clock."""

    value: bytes
    revision: int
    at: float


class Bucket:
    """One bucket. ``ttl`` in s (0: entries stay), ``replicas`` copies. ``born`` is when it was made (Unix time)."""

    def __init__(self, questions: Questions, name: str, *, ttl: float, replicas: int = 1) -> None:
        self.name = name
        self.ttl = ttl
        self.born = 0.0
        self.ready = False
        self.stream = f"KV_{name}"
        self.prefix = f"$KV.{name}."
        self._questions = questions
        self._replicas = replicas

    async def make(self, *, create: bool = True) -> bool:
        """Have it ready; one with a shorter TTL gets ours. False when it is not there and not to be made.

        Raises ``BusUnavailable``, and ``BusRefused`` where there is no JetStream for us.
        """
        if self.ready:
            return True
        answer = await self._api(f"STREAM.INFO.{self.stream}", b"")
        code = answer.get("error", {}).get("err_code")
        if code == _STREAM_NOT_FOUND:
            if not create:
                return False
            answer = await self._api(f"STREAM.CREATE.{self.stream}", self._config(), CREATE_TIMEOUT)
            if answer.get("error", {}).get("err_code") == _IN_USE:
                answer = await self._api(f"STREAM.INFO.{self.stream}", b"")
        self._check(answer)
        config = answer["config"]
        ttl = config.get("max_age", 0) / 1e9
        if create and self.ttl > ttl > 0:
            # Only ever longer: who counts on the shorter one gives up its leases earlier than it must.
            window = round(min(120.0, self.ttl) * 1e9)
            config |= {"max_age": round(self.ttl * 1e9), "duplicate_window": window}
            answer = await self._api(f"STREAM.UPDATE.{self.stream}", msgspec.json.encode(config), CREATE_TIMEOUT)
            self._check(answer)
        else:
            self.ttl = ttl
        self.born = _unix(answer["created"])
        self.ready = True
        return True

    def _config(self) -> bytes:
        ttl = round(self.ttl * 1e9)
        config = {
            "name": self.stream,
            "subjects": [self.prefix + ">"],
            "retention": "limits",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msgs_per_subject": 1,
            "max_msg_size": -1,
            "max_age": ttl,
            "storage": "file",
            "discard": "new",
            "num_replicas": self._replicas,
            "duplicate_window": min(ttl, 120_000_000_000) or 120_000_000_000,
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        return msgspec.json.encode(config)

    async def get(self, key: str) -> Kept | None:
        """What the leader of the bucket has; None where there is nothing, or a deletion."""
        asked = msgspec.json.encode({"last_by_subj": self.prefix + key})
        answer = await self._api(f"STREAM.MSG.GET.{self.stream}", asked)
        error = answer.get("error")
        if error is not None:
            if error.get("err_code") == _NO_MESSAGE:
                return None
            self._refuse(error)
        message = answer["message"]
        headers = parse_headers(base64.b64decode(message["hdrs"])) if message.get("hdrs") else {}
        if _OPERATION in headers:
            return None
        return Kept(base64.b64decode(message.get("data") or ""), message["seq"], _unix(message["time"]))

    async def put(self, key: str, value: bytes, *, revision: int | None = None, delete: bool = False) -> int:
        """Write a key and return its revision; with ``revision`` only over that one (0: only where there is none).

        Raises ``Conflict``, ``BusUnavailable``, ``BusRefused``.
        """
        headers: dict[str, str] = {}
        if revision is not None:
            headers[_REVISION] = str(revision)
        if delete:
            headers[_OPERATION] = "DEL"
        try:
            answer = await self._questions.ask(self.prefix + key, value, TIMEOUT, headers or None)
        except Unanswered:
            # Where we listen to the bucket's keys ourselves, nobody says that it was deleted.
            self.ready = False
            raise
        if is_no_responders(answer):
            self.ready = False
            raise BusUnavailable(f"the bucket {self.name} is not there")
        ack = _decode(answer)
        error = ack.get("error")
        if error is not None:
            if error.get("err_code") == _WRONG_REVISION:
                raise Conflict(key)
            self._refuse(error)
        return int(ack["seq"])

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that has no value, or a deletion. Raises as ``put``."""
        try:
            return await self.put(key, value, revision=0)
        except Conflict:
            asked = msgspec.json.encode({"last_by_subj": self.prefix + key})
            answer = await self._api(f"STREAM.MSG.GET.{self.stream}", asked)
            if "error" in answer:  # it went between the two
                return await self.put(key, value, revision=0)
            message = answer["message"]
            headers = parse_headers(base64.b64decode(message["hdrs"])) if message.get("hdrs") else {}
            if _OPERATION not in headers:
                raise
            return await self.put(key, value, revision=message["seq"])

    async def keys(self) -> list[str]:
        """The keys that have a value or a deletion."""
        found: dict[str, int] = {}
        while True:
            asked = msgspec.json.encode({"subjects_filter": self.prefix + ">", "offset": len(found)})
            answer = await self._api(f"STREAM.INFO.{self.stream}", asked)
            self._check(answer)
            page = answer.get("state", {}).get("subjects") or {}
            found |= page
            if not page or len(found) >= answer.get("total", 0):
                return [subject[len(self.prefix) :] for subject in found]

    async def _api(self, verb: str, payload: bytes, timeout: float = TIMEOUT) -> dict[str, Any]:
        answer = await self._questions.ask(API + verb, payload, timeout)
        if is_no_responders(answer):
            raise BusRefused("this NATS has no JetStream")
        return _decode(answer)

    def _check(self, answer: Mapping[str, Any]) -> None:
        if answer.get("error") is not None:
            self._refuse(answer["error"])

    def _refuse(self, error: Mapping[str, Any]) -> None:
        text = f"bucket {self.name}: {error.get('description')}"
        self.ready = False
        # 503: JetStream is not ready (no leader, starting); 404: the bucket was deleted under us.
        if error.get("code") in (404, 408, 500, 503) and error.get("err_code") not in (10039, 10076):
            raise BusUnavailable(text)
        raise BusRefused(text)


def deleted(message: Incoming) -> bool:
    """Whether a message of a bucket's subject is a deletion."""
    headers = message.headers
    return headers is not None and _OPERATION in headers


def _decode(message: Incoming) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(message.data or b"{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _unix(text: str) -> float:
    # RFC 3339 with nanoseconds, which Python 3.11 reads as far as microseconds.
    head, dot, rest = text.partition(".")
    digits = rest.rstrip("Z")[:6] if dot else ""
    return datetime.fromisoformat(f"{head.rstrip('Z')}{'.' + digits if digits else ''}+00:00").timestamp()
