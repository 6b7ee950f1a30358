"""NATS' decentralised login: operator, account with JetStream, users as JWTs in .creds files, on a real server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nkeys
import pytest

from bridge.bus.base import BusState
from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.errors import BusRefused
from tests.integration.conftest import House
from tests.integration.test_security import documented

BASIC = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
STORAGE = ("mem_storage", "disk_storage", "streams", "consumer")


class Key:
    """An nkey pair of the kind that ``prefix`` says."""

    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def token(self, subject: str, kind: str, claims: dict[str, Any] | None = None, **registered: Any) -> str:
        """A JWT about ``subject``, signed by this key."""
        body = {"iss": self.public, "sub": subject, "iat": int(time.time()) - 10, "name": kind, **registered}
        body["nats"] = {"type": kind, "version": 2, **(claims or {})}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        parts = [_base64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
        signed = ".".join(parts).encode()
        return f"{signed.decode()}.{_base64(self._pair.sign(signed))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Realm:
    """An operator with one account, and the users that it knows, knew, and never knew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operator, self.account, self.system = (
            Key(prefix) for prefix in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
        )
        self._revoked = Key(nkeys.PREFIX_BYTE_USER)
        self.secrets: list[str] = []

    def config(self) -> str:
        account = {
            "limits": dict.fromkeys((*BASIC, *STORAGE), -1) | {"wildcards": True},
            "revocations": {self._revoked.public: int(time.time()) + 3600},
        }
        system = {"limits": dict.fromkeys(BASIC, -1)}
        return f"""
            operator: "{self.operator.token(self.operator.public, "operator")}"
            system_account: "{self.system.public}"
            resolver: MEMORY
            resolver_preload: {{
              "{self.account.public}": "{self.operator.token(self.account.public, "account", account)}"
              "{self.system.public}": "{self.operator.token(self.system.public, "account", system)}"
            }}
        """

    def creds(self, name: str, *, issuer: Key | None = None, user: Key | None = None, seed: Key | None = None,
              rights: dict[str, Any] | None = None, **registered: Any) -> str:  # fmt: skip
        """Write a credentials file as ``nsc`` does, and return its path."""
        user = user or Key(nkeys.PREFIX_BYTE_USER)
        claims = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}, **(rights or {})}
        token = (issuer or self.account).token(user.public, "user", claims, **registered)
        self.secrets += [token, (seed or user).seed.decode()]
        file = self.folder / f"{name}.creds"
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{(seed or user).seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return str(file)

    def bad(self, how: str) -> str:
        """Credentials that the server must not take."""
        now = int(time.time())
        if how == "expired":
            return self.creds(how, exp=now - 5)
        if how == "revoked":
            return self.creds(how, user=self._revoked)
        if how == "of another account":
            return self.creds(how, issuer=Key(nkeys.PREFIX_BYTE_ACCOUNT))
        assert how == "with another's seed"
        return self.creds(how, seed=Key(nkeys.PREFIX_BYTE_USER))


def bridge_rights() -> dict[str, Any]:
    """What the page on security grants the bridge, as claims of a JWT."""
    block = documented("nats").partition('user: "esl-bridge"')[2].partition('user: "service"')[0]
    block = re.sub(r"#.*", "", block)
    publish, subscribe = (re.findall(r'"([^"]+)"', part) for part in re.findall(r"= \[(.*?)\]", block, re.DOTALL))
    return {"pub": {"allow": publish}, "sub": {"allow": subscribe}}


@pytest.fixture
async def realm(tmp_path: Path) -> Realm:
    return Realm(tmp_path)


@pytest.fixture
async def house(realm: Realm, tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=realm.config()))
        yield House(broker, tmp_path, stack)


async def test_worker_and_client_log_in_with_the_documented_rights(house: House, realm: Realm) -> None:
    switch = await house.switch(calls_per_second=10.0)
    creds = realm.creds("bridge", rights=bridge_rights())
    worker = await house.worker(
        switch,
        bus={"creds": creds},
        events={"delivery": "both"},
        commands={"durable": True, "ledger": "shared"},
    )
    assert not worker.crew.warning, "the account has JetStream"
    assert worker.describe()["ledger"] == "shared"
    service = realm.creds("service")
    async with Bridge(house.broker.url, credentials_file=service) as client:
        assert (await client.api("echo hello", timeout=10)).result == "hello"
        assert (await client.request({"id": "1", "command": "echo kept"}, timeout=20, queue="esl.queue")).status == "ok"
        async with asyncio.timeout(20):
            async for event in client.events("CHANNEL_ANSWER"):
                assert event.node == "fs1"
                break
    violations = [line for line in house.broker._output if "iolation" in line]
    assert violations == []


BAD = ["expired", "revoked", "of another account", "with another's seed"]


@pytest.mark.parametrize("how", BAD)
async def test_credentials_that_do_not_hold_are_refused(house: House, realm: Realm, how: str) -> None:
    with pytest.raises(BusRefused) as refused:
        async with Bridge(house.broker.url, credentials_file=realm.bad(how)):
            pass
    assert "uthorization" in str(refused.value)


async def cli(*arguments: str, **environ: str) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ESL_BRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", *arguments, env=clean | environ,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        raise AssertionError(output.decode()) from None
    assert process.returncode is not None
    return process.returncode, output.decode()


def settings(house: House, creds: str) -> dict[str, str]:
    return {"ESL_BRIDGE_BUS__URL": house.broker.url, "ESL_BRIDGE_BUS__CREDS": creds, "ESL_BRIDGE_HTTP__LISTEN": ""}


async def test_check_logs_in_and_says_what_is_refused(house: House, realm: Realm) -> None:
    code, output = await cli("check", "--connect", **settings(house, realm.creds("good", rights=bridge_rights())))
    assert (code, "the ledger is shared" in output) == (0, True), output
    for how in BAD:
        creds = realm.bad(how)
        code, output = await cli("check", "--connect", **settings(house, creds))
        assert code == 78, output
        assert "uthorization" in output
        assert not any(secret in output for secret in realm.secrets), "a secret in the output"


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), ("nothing of the kind", "not a NATS credentials file")]
)
async def test_a_file_that_is_none_is_named(house: House, tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "wrong.creds"
    if content is not None:
        file.write_text(content)
    code, output = await cli("check", "--connect", **settings(house, str(file)))
    assert (code, "wrong.creds" in output, why in output) == (78, True, True), output


async def test_a_worker_that_is_refused_says_why_and_is_not_ready(house: House, realm: Realm) -> None:
    """It does not end: whoever grants the right later need not start it again."""
    worker = await house.worker(bus={"creds": realm.bad("expired")}, ready=False)
    told: list[str] = []
    before = worker.bus.on_state

    def note(state: BusState) -> None:
        told.append(state.reason)
        before(state)

    worker.bus.on_state = note
    await house.until(lambda: any("uthorization" in reason for reason in told))
    assert worker.ready == (False, "the bus is not connected")


async def test_a_login_that_expires_while_it_runs_is_seen_and_mended_by_a_new_file(house: House, realm: Realm) -> None:
    """The server ends the connection; the file is read again for the next one."""
    user = Key(nkeys.PREFIX_BYTE_USER)
    creds = realm.creds("short", user=user, exp=int(time.time()) + 3)
    switch = await house.switch()
    worker = await house.worker(switch, bus={"creds": creds})
    await house.until(lambda: not worker.bus.connected)
    realm.creds("short", user=user)
    await house.until(lambda: worker.bus.connected, 60)


async def test_an_nkey_seed_logs_a_worker_in(tmp_path: Path) -> None:
    key, other = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    for name, one in (("good", key), ("bad", other)):
        (tmp_path / f"{name}.seed").write_bytes(one.seed)
    async with AsyncExitStack() as stack:
        config = f"authorization {{ users = [ {{ nkey: {key.public} }} ] }}"
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=config))
        house = House(broker, tmp_path, stack)
        await house.worker(await house.switch(), bus={"nkey": str(tmp_path / "good.seed")})
        client = await house.client(nkey_file=str(tmp_path / "good.seed"))
        assert (await client.api("echo key", timeout=10)).result == "key"
        code, output = await cli(
            "check", "--connect", ESL_BRIDGE_BUS__URL=broker.url, ESL_BRIDGE_BUS__NKEY=str(tmp_path / "bad.seed")
        )
        assert (code, "uthorization" in output) == (78, True), output
