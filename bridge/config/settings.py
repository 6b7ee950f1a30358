"""Every setting with its type, default, unit and meaning; the TOML file mirrored attribute by attribute.

This room never reads anything: ``loading`` fills it from file, environment and secrets.
"""

from __future__ import annotations

import ssl
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, model_validator

from bridge.config.events import EventSettings
from bridge.config.section import Section
from bridge.config.values import (
    BusUrl,
    EslFilter,
    EventName,
    ListenAddress,
    NodeName,
    NodeUrl,
    QueueName,
    SecretUrl,
    WorkerId,
    fault,
    is_loopback,
    required,
    setting,
)
from bridge.errors import ConfigError
from bridge.esl.url import EslUrl

DURABLE_QUEUE = "esl.queue"
"""The contract's name for requests that NATS keeps."""
# Longer times are slips of the hand, and more than brokers and timers can count, in seconds.
DAY, YEAR = 86_400.0, 31_536_000.0
LogLevel = Literal["console", "alert", "crit", "err", "warning", "notice", "info", "debug"]


class WorkerSettings(Section):
    """``[worker]``: this process."""

    id: WorkerId = setting(
        "auto",
        'Name of this worker, unique on the bus; "auto" is the host name and the number of a lock file in state_dir',
    )
    state_dir: str = setting(
        "/var/lib/esl-bridge",
        "Folder for what must outlive a restart; a temporary one when it is not writable and nothing durable needs it",
        min_length=1,
    )
    drain_timeout: float = setting(
        20.0, "Longest time from SIGTERM to the exit: requests in hand are answered, events flushed", unit="s", ge=0,
        le=DAY,
    )  # fmt: skip


class BusSettings(Section):
    """``[bus]``: the broker."""

    url: BusUrl = setting(
        SecretUrl("nats://127.0.0.1:4222"),
        "The broker: nats:// tls:// redis:// rediss:// redis+cluster:// redis+sentinel:// unix:// or memory://",
    )
    codec: Literal["json", "msgpack"] = setting("json", "Encoding of events and notices; a reply uses its request's")
    username: str = setting("", "User at the broker, when it is not in the URL")
    password: SecretStr = setting(SecretStr(""), "Password at the broker, when it is not in the URL")
    password_file: str = setting("", "File that holds the password at the broker")
    creds: str = setting("", "NATS credentials file (JWT and seed)")
    nkey: str = setting("", "NATS nkey seed file")
    tls_ca: str = setting("", "File of CA certificates that the broker's certificate is checked against")
    tls_cert: str = setting("", "Client certificate file for the broker")
    tls_key: str = setting("", "Key file of the client certificate")

    @model_validator(mode="after")
    def _check(self) -> BusSettings:
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls_key" if self.tls_cert else "tls_cert"
            raise fault("is needed too: tls_cert and tls_key go together", missing)
        if self.url.scheme not in ("nats", "tls"):
            for key in ("creds", "nkey"):
                if getattr(self, key):
                    raise fault("is for NATS only", key)
        return self

    @property
    def unused(self) -> dict[str, str]:
        """Keys that are set and mean nothing for this URL, each with the reason."""
        found = {}
        user, _, inside = self.url.get_secret_value().partition("://")[2].rpartition("@")[0].partition(":")
        if inside and self.password.get_secret_value():
            found["password"] = "is not used: there is one in bus.url"
        if user and self.username:
            found["username"] = "is not used: there is one in bus.url"
        if self.tls_ca and self.url.scheme in ("redis", "redis+cluster", "redis+sentinel", "unix", "memory"):
            found["tls_ca"] = f"is not used: {self.url.scheme}:// does not speak TLS"
        return found

    def files(self) -> dict[str, str]:
        """The files that the connection needs, by their keys; only those that are set."""
        keys = ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")
        return {key: getattr(self, key) for key in keys if getattr(self, key) and key not in self.unused}

    def options(self) -> dict[str, Any]:
        """The means to log in and to speak TLS, as ``open_bus`` names them; only those that are set."""
        given = {
            "user": self.username,
            "password": self.password.get_secret_value(),
            "credentials_file": self.creds,
            "nkey_file": self.nkey,
            "tls_ca_file": self.tls_ca,
            "tls_cert_file": self.tls_cert,
            "tls_key_file": self.tls_key,
        }
        return {name: value for name, value in given.items() if value}


class EslSettings(Section):
    """``[esl]``: names, meaning and units of the OpenSIPS freeswitch module."""

    event_heartbeat_interval: float = setting(
        0.0, "Expected time between two HEARTBEATs; 0 learns it from them", unit="s", ge=0, le=3600
    )
    esl_connect_timeout: int = setting(
        5000, "Longest time for TCP connect and authentication", unit="ms", ge=1, le=3_600_000
    )
    esl_cmd_timeout: int = setting(
        5000, "Longest wait for FreeSWITCH's direct reply to a command; does not include connecting", unit="ms", ge=1,
        le=3_600_000,
    )  # fmt: skip
    esl_cmd_polling_itv: int = setting(
        0, "0: replies leave at once; more: they are gathered and leave every so often", unit="us", ge=0, le=10_000_000
    )


class NodeSettings(Section):
    """``[[node]]``: one FreeSWITCH server."""

    name: NodeName = required("Name of the node: 1 to 64 of A-Z a-z 0-9 _ -, unique")
    url: NodeUrl = required("fs://[username]:password@host[:port], port 8021; also fs+tls:// and fs+unix://")
    password: SecretStr = setting(SecretStr(""), "Password, when it is not in the URL")
    password_file: str = setting("", "File that holds the password")
    allow_default_password: bool = setting(
        False, "Accept FreeSWITCH's default password, ClueCon, for a server that is not this machine"
    )
    tags: list[str] = setting([], 'Tags for requests to "tag:<tag>"')
    pin: str = setting("", "Worker id or tag of the workers that shall own this node while one of them lives")
    format: Literal["json", "plain"] = setting("json", "Event format asked of FreeSWITCH")
    subscribe: list[EventName] | None = setting(None, "Events to subscribe to; absent: those of [events]")
    filters: list[EslFilter] = setting([], 'ESL filters "Header value" or "Header /regex/"; empty: everything')
    log_level: LogLevel | None = setting(None, "Relay FreeSWITCH's log lines up to this level to fs.bridge.log")
    suppress_own_api: bool = setting(True, "Leave out the API events that the bridge's own commands cause")
    tls_ca: str = setting("", "File of CA certificates for fs+tls://")
    tls_verify: bool = setting(True, "Check the certificate of an fs+tls:// server")
    max_connections: int = setting(4, "Most command connections to this node", unit="connections", ge=1, le=256)
    max_pipelined: int = setting(
        16, "Most unanswered commands on one connection (depth is doubt)", unit="commands", ge=1, le=1024
    )
    idle_timeout: float = setting(60.0, "A command connection unused for this long is closed", unit="s", gt=0, le=YEAR)

    @model_validator(mode="after")
    def _check(self) -> NodeSettings:
        if any(not tag or any(mark in tag for mark in " *>") for tag in self.tags):
            raise fault("a tag must be a word without spaces or wildcards", "tags")
        if self.has_default_password_off_loopback and not self.allow_default_password:
            raise fault(
                "is FreeSWITCH's default password, which everybody knows; change it there "
                "(event_socket.conf.xml), or set allow_default_password",
                "password",
            )
        return self

    @property
    def has_default_password_off_loopback(self) -> bool:
        """Whether anyone who reaches this server can use it."""
        url = self.esl_url
        return url.password == "ClueCon" and not url.path and not is_loopback(url.host)

    @property
    def esl_url(self) -> EslUrl:
        """The URL in its parts."""
        return EslUrl.parse(self.url.get_secret_value())

    def tls_context(self) -> ssl.SSLContext | None:
        """What ``fs+tls://`` speaks TLS with, None elsewhere. Raises ``ConfigError`` for an unusable CA file."""
        if self.url.scheme != "fs+tls":
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([(f"node {self.name}: tls_ca", f"cannot use {self.tls_ca}: {error}")]) from None
        if not self.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class CommandSettings(Section):
    """``[commands]``: the path from a request to its reply."""

    queue: QueueName = setting("esl.cmd", "Queue that requests are taken from; a node's own is <queue>.<node>")
    queue_type: Literal["stream", "list"] = setting("stream", "Kind of the queue on Redis")
    durable: bool = setting(False, "NATS: also take requests from the JetStream queue esl.queue")
    max_in_flight: int = setting(
        512, "Most requests in hand; more are answered busy, or left in the queue", unit="requests", ge=1
    )
    max_in_flight_node: int = setting(256, "Most requests in hand for one node", unit="requests", ge=1)
    max_timeout: float = setting(3600.0, "Largest timeout_ms that a request may ask for", unit="s", gt=0, le=YEAR)
    job_timeout: float = setting(
        120.0, "Budget of background jobs when the request names none", unit="s", gt=0, le=YEAR
    )
    dedup_window: float = setting(300.0, "How long the outcome of an id is kept", unit="s", ge=0, le=YEAR)
    ledger: Literal["auto", "memory", "shared"] = setting(
        "auto",
        "Memory of outcomes: auto shares it among all workers where the broker keeps things (Redis, JetStream); "
        "memory: each worker its own; shared: refuse to start without",
    )
    claim_after: float = setting(
        30.0, "A worker silent for this long loses the entries it has in hand to another", unit="s", ge=1, le=DAY
    )
    scatter_limit: int = setting(
        16, "Largest fleet in which a call that nobody owns up to is looked for on every node", unit="nodes", ge=0
    )
    reply_to: list[str] | None = setting(
        None, "Patterns of permitted reply addresses; absent: the bus's own (contract)"
    )
    background: list[str] | None = setting(None, "API verbs that run as jobs under the hood; absent: the built-in list")
    safe: list[str] | None = setting(
        None, "API verbs without effects, kept out of the ledger; absent: the built-in list"
    )

    def queues(self, scheme: str) -> tuple[str, ...]:
        """The queues that all workers share on a bus of this scheme; below each lies one for every node."""
        durable = self.durable and scheme in ("nats", "tls")
        return (self.queue, DURABLE_QUEUE) if durable else (self.queue,)


class PolicySettings(Section):
    """``[policy]``: what requests may do. It lowers risk and is no sandbox."""

    allow: list[str] = setting([], "Patterns of what may run; empty: everything that is not denied")
    deny: list[str] | None = setting(None, "Patterns of what may not run; absent: the built-in list")
    rates: dict[str, float] = setting({}, "Most commands of a verb on one node", unit="1/s")
    audit: bool = setting(False, "Tell every command and its outcome on fs.bridge.audit, secrets redacted")

    @model_validator(mode="after")
    def _check(self) -> PolicySettings:
        for verb, rate in self.rates.items():
            if rate <= 0:
                raise fault(f"must be more than 0, got {rate:g}", f"rates.{verb}")
        return self


class FleetSettings(Section):
    """``[fleet]``: many workers on one bus."""

    standby: int = setting(
        0, "Workers that keep a warm link to a node of another: with 1 a killed worker costs no event", unit="workers",
        ge=0, le=1,
    )  # fmt: skip
    lease_time: float = setting(
        5.0, "A worker silent for this long loses its nodes; one value for all workers", unit="s", ge=0.5, le=300
    )
    weight: float = setting(1.0, "Capacity of this worker: its share of the nodes against the others'", gt=0, le=1000)
    tags: list[str] = setting([], "Tags of this worker, for the pin of a node")


class HttpSettings(Section):
    """``[http]``: health, metrics and the web page."""

    listen: ListenAddress = setting(
        "127.0.0.1:8090", 'Address for /live /ready /metrics /nodes and the page; "" is off'
    )
    console: bool = setting(False, "Let the page send commands; whoever does needs the token")
    token: SecretStr = setting(
        SecretStr(""), "Token for the page's console, and for its live tail when it is set; 12 characters or more"
    )
    token_file: str = setting("", "File that holds the token")

    @model_validator(mode="after")
    def _check(self) -> HttpSettings:
        token = self.token.get_secret_value()
        if any(char.isspace() or not char.isprintable() for char in token):
            raise fault("holds a space or a control character, with which no request can bear it", "token")
        if token and len(token) < 12:
            raise fault("is too short: 12 characters or more, as from `openssl rand -hex 16`", "token")
        if self.console and not token:
            raise fault("is needed: the console runs commands for whoever has it", "token")
        return self


class LogSettings(Section):
    """``[log]``: the worker's own log, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level that is logged")
    format: Literal["auto", "text", "json"] = setting("auto", "auto: text on a terminal, JSON otherwise")


class TraceSettings(Section):
    """``[trace]``: spans of commands for OpenTelemetry."""

    exporter: Literal["none", "otlp"] = setting(
        "none", "otlp: send a span of each command, as the OTEL_... variables say; needs the extra otel"
    )


class Settings(Section):
    """The whole configuration."""

    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    bus: BusSettings = Field(default_factory=BusSettings)
    esl: EslSettings = Field(default_factory=EslSettings)
    nodes: list[NodeSettings] = Field(default_factory=list, alias="node")
    events: EventSettings = Field(default_factory=EventSettings)
    commands: CommandSettings = Field(default_factory=CommandSettings)
    fleet: FleetSettings = Field(default_factory=FleetSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    trace: TraceSettings = Field(default_factory=TraceSettings)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        for key, text in self.events.faults(self.bus.url.scheme):
            raise fault(text, f"events.{key}")
        return self

    def secrets(self) -> list[str]:
        """Every secret by value, so that logs can blank them out wherever they turn up."""
        found = [
            self.bus.password.get_secret_value(),
            self.http.token.get_secret_value(),
            *_url_secrets(self.bus.url.get_secret_value()),
        ]
        for node in self.nodes:
            found.append(node.password.get_secret_value())
            if ":" in node.url.get_secret_value().partition("://")[2].rpartition("@")[0]:
                found.extend(_url_secrets(node.url.get_secret_value()))
            found.append(node.esl_url.password)
        return sorted({secret for secret in found if secret})


def _url_secrets(url: str) -> list[str]:
    user = url.partition("://")[2].rpartition("@")[0]
    raw = user.partition(":")[2] if ":" in user else user
    return [raw, unquote(raw)]
