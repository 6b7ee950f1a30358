from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from bridge.simulator import SimulatedSwitch


async def originate(client: Any, what: str = "&park()", dial: str = "null/100") -> str:
    text: str = (await client.command(f"api originate {dial} {what}")).text
    assert text.startswith("+OK ")
    return text[4:].strip()


async def names_until(client: Any, last: str, uuid: str) -> list[str]:
    found = []
    while True:
        event = (await client.event()).json()
        if event.get("Unique-ID") == uuid:
            found.append(event["Event-Name"])
            if event["Event-Name"] == last and (last != "CHANNEL_STATE" or event["Channel-State"] == "CS_DESTROY"):
                return found


async def test_the_life_of_an_originated_call(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json ALL")
    uuid = await originate(client)
    assert switch.has_call(uuid)
    assert (await client.command(f"api uuid_kill {uuid} USER_BUSY")).text == "+OK\n"
    assert await names_until(client, "CHANNEL_DESTROY", uuid) == [
        *("CHANNEL_OUTGOING", "CHANNEL_STATE", "CHANNEL_CREATE", "CHANNEL_ORIGINATE", "CHANNEL_STATE", "CHANNEL_STATE"),
        *("CHANNEL_PROGRESS", "CHANNEL_CALLSTATE", "CHANNEL_ANSWER", "CHANNEL_CALLSTATE", "CHANNEL_STATE"),
        *("CHANNEL_EXECUTE", "CHANNEL_PARK", "CHANNEL_HANGUP", "CHANNEL_UNPARK", "CHANNEL_EXECUTE_COMPLETE"),
        *("CHANNEL_STATE", "CHANNEL_CALLSTATE", "CHANNEL_STATE", "CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY"),
    ]
    assert not switch.has_call(uuid)


async def test_hangup_complete_tells_the_cause_twice_and_the_times(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json CHANNEL_HANGUP_COMPLETE")
    uuid = await originate(client)
    await client.command(f"api uuid_kill {uuid} USER_BUSY")
    frame = await client.event()
    assert frame.body.count(b'"Hangup-Cause":"USER_BUSY"') == 2
    event = frame.json()
    assert event["variable_hangup_cause_q850"] == "17"
    assert int(event["variable_mduration"]) >= int(event["variable_billmsec"]) >= 0
    assert len(event) > 110


async def test_execute_is_told_with_the_senders_uuid(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = await originate(client)
    await client.command("event json CHANNEL_EXECUTE CHANNEL_EXECUTE_COMPLETE")
    reply = await client.command(
        f"sendmsg {uuid}\ncall-command: execute\nexecute-app-name: set\nexecute-app-arg: a=b c\nEvent-UUID: mine"
    )
    assert reply.text == "+OK"
    begin, end = (await client.event()).json(), (await client.event()).json()
    assert (begin["Event-Name"], end["Event-Name"]) == ("CHANNEL_EXECUTE", "CHANNEL_EXECUTE_COMPLETE")
    for event in (begin, end):
        assert (event["Application"], event["Application-Data"], event["Application-UUID"]) == ("set", "a=b c", "mine")
    assert end["Application-Response"] == "_none_"
    assert (await client.command(f"api uuid_getvar {uuid} a")).text == "b c"
    assert switch.executed[f"sendmsg {uuid} execute set a=b c"] == 1


async def test_applications_run_one_after_another(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = await originate(client)
    await client.command("event json CHANNEL_EXECUTE CHANNEL_EXECUTE_COMPLETE")
    head = f"sendmsg {uuid}\ncall-command: execute\nexecute-app-name:"
    await client.command(f"{head} sleep\nexecute-app-arg: 20\nloops: 2\nEvent-UUID: 1")
    await client.command(f"{head} log\nEvent-UUID: 2\nContent-Type: text/plain\nContent-Length: 5\n\nin\nbo")
    order = [(await client.event()).json() for _ in range(6)]
    assert [(event["Event-Name"][8:], event["Application-UUID"]) for event in order] == [
        *(("EXECUTE", "1"), ("EXECUTE_COMPLETE", "1"), ("EXECUTE", "1"), ("EXECUTE_COMPLETE", "1")),
        *(("EXECUTE", "2"), ("EXECUTE_COMPLETE", "2")),
    ]
    assert order[-1]["Application-Data"] == "in\nbo"


async def test_a_hangup_ends_what_runs(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = await originate(client)
    await client.command("event json CHANNEL_EXECUTE_COMPLETE CHANNEL_DESTROY")
    await client.command(
        f"sendmsg {uuid}\ncall-command: execute\nexecute-app-name: sleep\nexecute-app-arg: 60000\nEvent-UUID: long"
    )
    await client.command("api msleep 10")
    assert (await client.command(f"sendmsg {uuid}\ncall-command: hangup\nhangup-cause: CALL_REJECTED")).text == "+OK"
    ended = [(await client.event()).json() for _ in range(3)]
    assert [event.get("Application") for event in ended] == ["sleep", "park", None]
    assert ended[2]["Hangup-Cause"] == "CALL_REJECTED"
    assert switch.executed[f"sendmsg {uuid} hangup CALL_REJECTED"] == 1
    answer = await client.command(f"sendmsg {uuid}\ncall-command: hangup")
    assert answer.text == f"-ERR invalid session id [{uuid}]"


async def test_the_hangup_application_completes(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = await originate(client)
    await client.command("event json CHANNEL_EXECUTE_COMPLETE")
    await client.command(f"sendmsg {uuid}\ncall-command: execute\nexecute-app-name: hangup\nEvent-UUID: bye")
    assert (await client.event()).json()["Application-UUID"] == "bye"


async def test_an_unknown_application_hangs_up(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = await originate(client)
    await client.command("event json CHANNEL_HANGUP")
    assert (await client.command(f"sendmsg {uuid}\ncall-command: execute\nexecute-app-name: bogus_app")).text == "+OK"
    assert (await client.event()).json()["Hangup-Cause"] == "DESTINATION_OUT_OF_ORDER"


async def test_a_call_ends_with_its_only_application(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(call_duration=0.05)
    client = await connect(switch)
    await client.command("event json CHANNEL_DESTROY PLAYBACK_STOP")
    uuid = await originate(client, "&playback(tone_stream://x)")
    assert (await client.event("PLAYBACK_STOP")).json()["Playback-File-Type"] == "tone_stream"
    assert (await client.event("CHANNEL_DESTROY")).json()["Unique-ID"] == uuid
    uuid = await originate(client, "9196 XML default")
    assert (await client.event("CHANNEL_DESTROY")).json()["Unique-ID"] == uuid


async def test_both_legs_of_a_bridge_end_together(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    one, two = await originate(client), await originate(client)
    await client.command("event json CHANNEL_BRIDGE CHANNEL_UNBRIDGE CHANNEL_DESTROY")
    await client.command(f"api uuid_bridge {one} {two}")
    bridge = (await client.event()).json()
    assert (bridge["Bridge-A-Unique-ID"], bridge["Bridge-B-Unique-ID"]) == (one, two)
    assert bridge["Other-Leg-Unique-ID"] == two
    await client.command(f"api uuid_kill {two}")
    assert (await client.event()).json()["Event-Name"] == "CHANNEL_UNBRIDGE"
    assert {(await client.event()).json()["Unique-ID"] for _ in range(2)} == {one, two}
    assert len(switch.calls) == 0


async def test_traffic_tells_whole_stories(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(calls_per_second=60.0, call_duration=0.1, seed=3)
    client = await connect(switch)
    await client.command("event json ALL")
    lives: dict[str, Counter[str]] = {}
    seen: Counter[str] = Counter()
    while sum(life["CHANNEL_DESTROY"] for life in lives.values()) < 60:
        event = (await client.event()).json()
        seen[event["Event-Name"] + event.get("Event-Subclass", "")] += 1
        if "Unique-ID" in event:
            lives.setdefault(event["Unique-ID"], Counter())[event["Event-Name"]] += 1
    switch.traffic.stop()
    async with asyncio.timeout(10):
        while len(switch.calls):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # A call that had begun before we listened is only half a story.
    whole = [life for life in lives.values() if life["CHANNEL_DESTROY"] and life["CHANNEL_CREATE"]]
    assert len(whole) > 30
    for life in whole:
        assert life["CHANNEL_CREATE"] == life["CHANNEL_HANGUP"] == life["CHANNEL_HANGUP_COMPLETE"] == 1
        assert life["CHANNEL_EXECUTE"] == life["CHANNEL_EXECUTE_COMPLETE"]
    for name in ("CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_UNBRIDGE", "DTMF", "CUSTOMsofia::register"):
        assert seen[name], name


async def test_a_seed_makes_the_same_calls() -> None:
    def callers(seed: int) -> list[str]:
        switch = SimulatedSwitch(seed=seed)
        return [switch.traffic._uuid() for _ in range(5)]

    assert callers(1) == callers(1) != callers(2)


async def test_no_more_calls_than_sessions(make_switch: Any) -> None:
    switch = await make_switch(calls_per_second=500.0, call_duration=60.0, max_sessions=6)
    async with asyncio.timeout(10):
        while switch.traffic.begun < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert switch.calls.peak <= 6


async def test_killing_a_leg_before_the_answer_ends_the_story(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(calls_per_second=200.0, call_duration=2.0)
    async with asyncio.timeout(10):
        while len(switch.calls) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    switch.traffic.stop()
    for channel in list(switch.calls.channels.values()):
        if channel.direction == "inbound":
            switch.calls.hang_up(channel)
    async with asyncio.timeout(10):
        while len(switch.calls):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
