"""NATS: durable topics, and streams that would swallow a queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext

from bridge.bus.base import Message, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import jetstream, keeper, pipeline
from bridge.errors import BusRefused, BusUnavailable, MessageTooLarge, PublishFailed
from tests.appending import append_all

SPEC = StreamSpec("FS_EVENTS", "fs.events", ("fs.events.>",), max_messages=100_000, max_bytes=64 << 20)


@pytest.fixture
async def server(start_nats: Any) -> EmbeddedBroker:
    found: EmbeddedBroker = await start_nats()
    return found


@pytest.fixture
async def js(server: EmbeddedBroker) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url)
    yield client.jetstream()
    await client.close()


def events(count: int, start: int = 0, topic: str = "fs.events.TEST") -> list[Message]:
    return [Message(topic, b"%d" % it, f"core:{it}", "", "application/json") for it in range(start, start + count)]


async def stored(js: JetStreamContext, stream: str = "FS_EVENTS") -> list[int]:
    state = (await js.stream_info(stream)).state
    found = [await js.get_msg(stream, sequence) for sequence in range(1, state.messages + 1)]
    return [int(message.data or b"") for message in found]


async def test_a_stream_is_made_with_limits(server: EmbeddedBroker, open_nats: Any, js: JetStreamContext) -> None:
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    config = (await js.stream_info("FS_EVENTS")).config
    assert config.subjects == ["fs.events.>"]
    assert (config.max_msgs, config.max_bytes) == (100_000, 64 << 20)
    assert config.max_age == 86400
    assert config.duplicate_window == 600
    assert str(config.storage) == "file"


async def test_a_stream_that_is_there_is_left_alone(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext
) -> None:
    await js.add_stream(name="FS_EVENTS", subjects=["fs.>"], max_msgs=7)
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    assert (await js.stream_info("FS_EVENTS")).config.max_msgs == 7


async def test_workers_may_make_it_at_the_same_time(server: EmbeddedBroker, open_nats: Any) -> None:
    buses = [await open_nats(server.url) for _ in range(4)]
    await asyncio.gather(*(bus.ensure_stream(SPEC) for bus in buses))


async def test_less_is_asked_for_where_the_server_has_less(start_nats: Any, open_nats: Any, tmp_path: Path) -> None:
    small = await start_nats(f'jetstream {{ store_dir: "{tmp_path}", max_file_store: 200MB }}')
    bus = await open_nats(small.url)
    await bus.ensure_stream(StreamSpec("BIG", "big", ("big.>",)))
    await append_all(bus, SPEC, events(1, topic="big.a"))


async def test_batches_are_stored_in_order_and_once(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext
) -> None:
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    await append_all(bus, SPEC, events(50))
    await append_all(bus, SPEC, events(50, 25))  # what a worker sends again after a doubt
    assert await stored(js) == list(range(75))
    message = await js.get_msg("FS_EVENTS", 1)
    assert message.headers == {"Nats-Msg-Id": "core:0", "Content-Type": "application/json"}


async def test_more_than_a_window(server: EmbeddedBroker, open_nats: Any, js: JetStreamContext) -> None:
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    await append_all(bus, SPEC, events(pipeline.ACK_WINDOW * 3 + 7))
    assert (await js.stream_info("FS_EVENTS")).state.messages == pipeline.ACK_WINDOW * 3 + 7


async def test_large_messages_are_not_under_way_by_the_thousand(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, eventually: Any
) -> None:
    """A server that takes in nothing for a while: what is written stays in our memory, beside what the buffers hold."""
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    line = bus.appender(SPEC, lambda: None)
    await line.append(events(1))
    await eventually(lambda: line.confirmed == 1)
    server.pause()
    large = [Message("fs.events.TEST", b"x" * 500_000, f"core:{it}", "", "") for it in range(1, 61)]

    async def write() -> None:
        for message in large:
            await line.append([message])

    writing = asyncio.create_task(write())
    try:
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not writing.done()
        assert line.outstanding * 500_000 <= pipeline.ACK_BYTES + 500_000
    finally:
        server.resume()
    await writing
    await eventually(lambda: line.confirmed == 61)
    assert (await js.stream_info("FS_EVENTS")).state.messages == 61


async def test_no_stream_captures_the_topic(server: EmbeddedBroker, open_nats: Any) -> None:
    bus = await open_nats(server.url)
    with pytest.raises(PublishFailed, match="no stream captures") as caught:
        await append_all(bus, SPEC, events(3, topic="elsewhere"))
    assert (caught.value.confirmed, caught.value.uncertain) == (0, 3)


async def test_a_full_stream_stops_the_window(server: EmbeddedBroker, open_nats: Any, js: JetStreamContext) -> None:
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"], max_msgs=10, discard="new")
    bus = await open_nats(server.url)
    with pytest.raises(PublishFailed, match="maximum messages exceeded") as caught:
        await append_all(bus, SPEC, events(3000))
    assert caught.value.confirmed == 10
    assert caught.value.confirmed + caught.value.uncertain < 3000
    assert await stored(js) == list(range(10))


async def test_too_large_writes_nothing(server: EmbeddedBroker, open_nats: Any, js: JetStreamContext) -> None:
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    with pytest.raises(MessageTooLarge):
        await append_all(bus, SPEC, [*events(1), Message("fs.events.A", b"x" * bus.max_payload, "id")])
    assert (await js.stream_info("FS_EVENTS")).state.messages == 0


async def test_a_broken_connection_leaves_a_doubt(
    server: EmbeddedBroker, open_nats: Any, eventually: Any, freeze: Any
) -> None:
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    told: list[int] = []
    line = bus.appender(SPEC, lambda: told.append(line.confirmed))
    await line.append(events(10))
    await eventually(lambda: line.confirmed == 10)
    await freeze(server)
    await line.append(events(10, 10))  # nobody confirms, and nobody waits for it
    await server.kill()
    await eventually(lambda: line.failure)
    assert (line.confirmed, line.written) == (10, 20)
    with pytest.raises(BusUnavailable, match="broke"):
        await line.append(events(1, 20))
    with pytest.raises(BusUnavailable):
        await append_all(bus, SPEC, events(10, 10))
    await server.start()
    await eventually(lambda: bus.connected)
    await append_all(bus, SPEC, events(10, 10))
    client = await nats.connect(server.url)
    assert await stored(client.jetstream()) == list(range(20))
    await client.close()


async def test_missing_acks_are_noticed(
    server: EmbeddedBroker, open_nats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ACK_TIMEOUT", 0.1)
    bus = await open_nats(server.url)
    await bus.subscribe("nowhere.>", lambda _received: None)  # somebody listens, nobody acknowledges
    with pytest.raises(PublishFailed, match="no ack"):
        await append_all(bus, SPEC, events(3, topic="nowhere.a"))


async def test_behind_a_missing_ack_nothing_more_is_written(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, eventually: Any
) -> None:
    """A message that was lost on its way, as when the stream's leader changes: the rest must not stand in front."""
    bus = await open_nats(server.url)
    await bus.subscribe("nowhere.>", lambda _received: None)  # somebody listens, nobody acknowledges
    await bus.ensure_stream(SPEC)
    line = bus.appender(SPEC, lambda: None)
    await line.append([*events(3), *events(1, 3, "nowhere.a"), *events(5, 4)])
    await eventually(lambda: line.overtaking == 5)
    with pytest.raises(BusUnavailable, match="no ack of a message"):
        await line.append(events(100, 9))
    assert (line.written, line.confirmed, line.overtaking) == (9, 3, 5)
    assert await stored(js) == [0, 1, 2, 4, 5, 6, 7, 8]
    line.close()


async def test_without_jetstream(start_nats: Any, open_nats: Any) -> None:
    denied = '{ user: u, password: p, permissions: { publish: { deny: "$JS.>" } } }'
    plain = await start_nats(f"authorization {{ users = [ {denied} ] }}")
    bus = await open_nats(plain.url.replace("nats://", "nats://u:p@"))
    with pytest.raises(BusRefused, match="JetStream"):
        await bus.ensure_stream(SPEC)
    await bus.consume("esl.cmd", lambda _delivery: None)


async def test_a_stream_that_captures_the_queue_is_named(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext
) -> None:
    await js.add_stream(name="GREEDY", subjects=["esl.>"])
    await js.add_stream(name="HARMLESS", subjects=["fs.>"])
    bus = await open_nats(server.url)
    for queue in ("esl.cmd", "esl.cmd.fs1"):
        with pytest.raises(BusRefused, match=rf"GREEDY captures {queue}"):
            await bus.consume(queue, lambda _delivery: None)
    await bus.consume("other.cmd", lambda _delivery: None)
    # Nothing is left behind: a request finds nobody but the stream.
    assert bus.connected


async def test_a_capture_found_later_is_told_and_cured(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "BACKOFF_REFUSED", 0.1)
    await js.add_stream(name="GREEDY", subjects=["esl.cmd"])
    bus = await open_nats(server.url, connect=False)
    await bus.consume("esl.cmd", lambda it: it.finish(it.reply_to, b"here", ""))
    bus.start()
    await eventually(lambda: bus.connected)
    assert "GREEDY captures esl.cmd" in bus.state.reason
    await js.delete_stream("GREEDY")
    await eventually(lambda: bus.state.connected and not bus.state.reason)
    replies: list[bytes] = []
    await bus.request("esl.cmd", b"{}", "", lambda payload, _type: replies.append(payload))
    await eventually(lambda: replies == [b"here"])


async def test_a_stream_that_gets_full_takes_nothing_behind_what_it_refused(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, eventually: Any
) -> None:
    """Small messages would still fit where a large one does not."""
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"], max_bytes=200_000, discard="new")
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    batch = [
        Message("fs.events.A", b"%d%b" % (number, b" " * (3_000 if number % 3 else 10)), f"core:{number}")
        for number in range(300)
    ]
    line = bus.appender(SPEC, lambda: None)
    with contextlib.suppress(BusUnavailable):
        for start in range(0, 300, 100):
            await line.append(batch[start : start + 100])
    await eventually(lambda: "maximum bytes" in line.failure)
    kept = await stored(js)
    assert kept == list(range(len(kept)))
    assert len(kept) == line.confirmed > 50
    await js.update_stream(name="FS_EVENTS", subjects=["fs.events.>"], max_bytes=-1, discard="new")
    await bus.ensure_stream(SPEC)
    await append_all(bus, SPEC, batch[line.confirmed :])
    assert await stored(js) == list(range(300))


ACCOUNT = """
accounts {
  A { jetstream { max_file: %s, max_mem: %s }, users = [ { user: u, password: p } ] }
  SYS { users = [ { user: sys, password: p } ] }
}
system_account: SYS
"""


def of_any_size(count: int, start: int = 0) -> list[Message]:
    """Two large messages, a small one, and so on: what still fits where another does not."""
    return [
        Message("fs.events.A", b"%d%b" % (number, b" " * (3_000 if number % 3 else 10)), f"core:{number}")
        for number in range(start, start + count)
    ]


async def go_on(bus: Any, batch: list[Message], kept: int = 0) -> int:
    """Append what is not confirmed, once, as the relay does; how many of the batch are confirmed then."""
    await bus.ensure_stream(SPEC)
    try:
        await append_all(bus, SPEC, batch[kept:])
    except PublishFailed as failure:
        return kept + failure.confirmed
    return len(batch)


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_a_full_account_takes_nothing_behind_a_refusal(start_nats: Any, open_nats: Any, storage: str) -> None:
    """The account's own limit, whatever the stream's: room comes and goes with what others store."""
    server = await start_nats(ACCOUNT % ("300K", "300K"))
    url = server.url.replace("nats://", "nats://u:p@")
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"], storage=storage)
    await js.add_stream(name="OTHER", subjects=["other"], storage=storage)
    for _ in range(40):
        await js.publish("other", b"x" * 3_000)
    bus = await open_nats(url)
    batch = of_any_size(300)
    kept = await go_on(bus, batch)
    assert 50 < kept < 300
    for _ in range(3):
        assert await go_on(bus, batch, kept) == kept
    assert await stored(js) == list(range(kept))
    await js.purge_stream("OTHER", keep=20)
    some = await go_on(bus, batch, kept)
    assert kept < some < 300
    assert await stored(js) == list(range(some))
    await js.delete_stream("OTHER")
    assert await go_on(bus, batch[:140], some) == 140
    assert await stored(js) == list(range(140))
    await client.close()


async def test_what_others_store_meanwhile_is_seen(
    start_nats: Any, open_nats: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_ASK_AGAIN", 0.05)
    server = await start_nats(ACCOUNT % ("300K", "300K"))
    url = server.url.replace("nats://", "nats://u:p@")
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="OTHER", subjects=["other"])
    bus = await open_nats(url)
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"])
    await bus.ensure_stream(SPEC)
    batch = of_any_size(100)
    line = bus.appender(SPEC, lambda: None)
    await line.append(batch[:10])
    await line.until(0)
    for _ in range(90):
        await js.publish("other", b"x" * 3_000)
    await asyncio.sleep(0.05)  # the time after which it asks again
    with contextlib.suppress(BusUnavailable):
        await line.append(batch[10:])
    await eventually(lambda: "limits" in line.failure)
    assert (line.overtaking, await stored(js)) == (0, list(range(line.confirmed)))
    await client.close()


async def test_in_a_full_topic_nothing_waits_for_the_next(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext
) -> None:
    """``discard_new_per_subject``: one topic is full, and the others are not."""
    await js.add_stream(
        name="FS_EVENTS", subjects=["fs.events.>"], max_msgs_per_subject=5, discard="new", discard_new_per_subject=True
    )
    bus = await open_nats(server.url)
    topics = [f"fs.events.{f'B{number}' if number % 2 else 'A0'}" for number in range(40)]
    batch = [Message(topic, b"%d" % number, f"core:{number}") for number, topic in enumerate(topics)]
    kept = await go_on(bus, batch)
    assert kept == 10  # the sixth of fs.events.A0
    assert await go_on(bus, batch, kept) == kept
    assert await stored(js) == list(range(10))
    await js.purge_stream("FS_EVENTS", subject="fs.events.A0")
    assert await go_on(bus, batch, kept) == 20
    kept_now = [int(message.data or b"") for message in [await js.get_msg("FS_EVENTS", n) for n in range(11, 21)]]
    assert kept_now == list(range(10, 20))


async def test_order_is_lost_once_where_a_refusal_could_not_be_foreseen_and_that_is_known(
    start_nats: Any, open_nats: Any, eventually: Any, tmp_path: Path
) -> None:
    """A server that has too much to do refuses some of a window; from then on they go one by one."""
    server = await start_nats(f'jetstream {{ store_dir: "{tmp_path}", max_buffered_size: 4K }}')
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    batch = of_any_size(400)
    line = bus.appender(SPEC, lambda: None)
    with contextlib.suppress(BusUnavailable):
        await line.append(batch)
        await line.until(0)
    assert line.failure == "too many requests"
    client = await nats.connect(server.url)
    js = client.jetstream()
    while True:  # what is on its way has its answer when the stream grows no more
        before = (await js.stream_info("FS_EVENTS")).state.messages
        await asyncio.sleep(0.1)
        if (await js.stream_info("FS_EVENTS")).state.messages == before:
            break
    first = await stored(js)
    await eventually(lambda: line.confirmed + line.overtaking == len(first))
    assert line.overtaking
    known = line.confirmed
    line.close()
    while known < 400:
        known = await go_on(bus, batch, known)
    later = (await stored(js))[len(first) :]
    assert later == [number for number in range(400) if number not in first]
    await client.close()


async def test_who_loses_order_again_is_careful_for_longer(
    server: EmbeddedBroker, open_nats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "MOST_CAREFUL", 5_000)
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    careful = []
    for ahead in ((), (), (8, 9), (9,), (9,)):  # of what a refusal left unconfirmed, those that were taken
        line = bus.appender(SPEC, lambda: None)
        careful.append(line._careful)
        line._refuse("no room")
        line._ahead.update(ahead)
        line.close()
    window = pipeline.ACK_WINDOW
    assert careful == [0, window, window, 2 * window, 4 * window]
    assert bus.appender(SPEC, lambda: None)._careful == 5_000
    other = bus.appender(SPEC, lambda: None)
    other.fail("the connection broke")
    other.close()
    assert bus.appender(SPEC, lambda: None)._careful == 5_000


async def test_an_account_that_we_may_not_ask_about_is_taken_for_one_without_limits(
    start_nats: Any, open_nats: Any
) -> None:
    rights = '{ user: u, password: p, permissions: { publish: { deny: "$JS.API.INFO" } } }'
    server = await start_nats(f"authorization {{ users = [ {rights} ] }}")
    bus = await open_nats(server.url.replace("nats://", "nats://u:p@"))
    for kept in (0, 50):
        assert await go_on(bus, events(100), kept) == 100
    denied = [text for text in bus._keeper.link.violations if "$js.api.info" in text.lower()]
    assert len(denied) == 1  # asked once


async def test_acks_of_many_kinds_are_counted(server: EmbeddedBroker, open_nats: Any, js: JetStreamContext) -> None:
    """Duplicates and new ones in one window, in reads of any length."""
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    await append_all(bus, SPEC, events(500))
    line = bus.appender(SPEC, lambda: None)
    for start in range(0, 1_000, 50):
        await line.append(events(50, start))
    await line.until(0)
    assert line.confirmed == 1_000
    assert (await js.stream_info("FS_EVENTS")).state.messages == 1_000


async def test_limits_that_are_not_told_any_more_break_the_pipeline_off(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stands still, or a right that was taken away: the caller goes on when it is to be had again."""
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"], max_bytes=1 << 20, discard="new")
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    line = bus.appender(SPEC, lambda: None)
    with monkeypatch.context() as patch:

        async def silence(*_: Any) -> None:
            return None

        patch.setattr(jetstream, "ask", silence)
        with pytest.raises(BusUnavailable, match="no answer from JetStream"):
            await line.append(events(10))
    assert line.failure
    assert not line.written
    await append_all(bus, SPEC, events(10))
    assert await stored(js) == list(range(10))


async def test_a_stream_that_keeps_nothing_is_warned_of(
    server: EmbeddedBroker, open_nats: Any, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps what its consumers want, and has none: JetStream acknowledges, and forgets."""
    await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"], retention="interest")
    bus = await open_nats(server.url)
    await bus.ensure_stream(SPEC)
    await bus.ensure_stream(SPEC)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "FS_EVENTS" in record.getMessage()
    caplog.clear()
    await js.pull_subscribe("fs.events.>", durable="reader", stream="FS_EVENTS")
    other = await open_nats(server.url)
    await other.ensure_stream(SPEC)
    assert not caplog.records


async def test_an_inbox_that_is_not_to_be_had_breaks_the_pipeline_off(start_nats: Any, open_nats: Any) -> None:
    rights = 'permissions: { subscribe: { deny: ["own.>"] } }'
    config = f"authorization {{ users = [ {{ user: u, password: p, {rights} }} ] }}"
    server = await start_nats(config)
    bus = await open_nats(server.url.replace("//", "//u:p@"), inbox_prefix="own")
    await bus.ensure_stream(SPEC)
    pipeline = bus.appender(SPEC, lambda: None)
    with pytest.raises(BusUnavailable, match="does not let us listen"):
        await pipeline.append([Message("fs.events.A", b"x")])
    assert (pipeline.written, pipeline.confirmed) == (0, 0)
