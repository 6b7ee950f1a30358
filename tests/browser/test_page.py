"""The page as a person sees it: in a real browser, with calls going on, light and dark, on a desk and on a phone."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import BridgeError

from .conftest import TOKEN, Stage, Tab

pytestmark = pytest.mark.browser


async def some_commands(stage: Stage) -> None:
    commands = ["status", "system rm -rf /", "no_such_command", "originate {sip_auth_password=hidden}user/1000 &park"]
    for fields in (*({"command": command} for command in commands), {"command": "status", "to": "fs9"}):
        await stage.client.request(fields, timeout=10)
    await stage.client.request({"command": "show channels count", "to": "all"}, timeout=10)


def rows(selector: str) -> str:
    return f"[...document.querySelectorAll({json.dumps(selector)})].map(row => row.innerText)"


async def test_the_page_shows_the_fleet_and_what_it_does(stage: Stage, tab: Tab, pictures: Path) -> None:
    await stage.set()
    await some_commands(stage)
    await tab.open(stage.url)
    await tab.until("document.querySelectorAll('#nodes tbody tr').length === 3")
    await tab.until("[...document.querySelectorAll('#nodes tbody tr')].every(row => row.innerText.includes('UP'))")
    await tab.until("!document.querySelector('#failed').innerText.includes('No command failed')")
    nodes = "\n".join(await tab.eval(rows("#nodes tbody tr")))
    assert all(name in nodes for name in ("fs1", "fs2", "fs3", "media", stage.worker.id))
    failed = "\n".join(await tab.eval(rows("#failed tbody tr")))
    assert "denied" in failed
    assert "unavailable" in failed
    assert "no_such_command" in failed
    slowest = "\n".join(await tab.eval(rows("#slowest tbody tr")))
    assert "originate {sip_auth_password=***}user/1000 &park" in slowest
    assert "hidden" not in await tab.text("body")
    assert "ready" in await tab.text("header")
    # The picture lives: after some seconds there are points with height.
    await tab.until("document.querySelector('#flow .line').getAttribute('d').split('L').length > 3")
    await tab.until("parseFloat(document.querySelector('#flow-now').innerText.replace('now ', '')) > 0")
    assert tab.faults == []
    await tab.screenshot(pictures / "desk-light.png")


async def test_a_node_that_goes_down_is_seen(stage: Stage, tab: Tab, pictures: Path) -> None:
    await stage.set(switches=2, rate=1)
    await tab.open(stage.url)
    await tab.until("document.querySelectorAll('#nodes tbody tr').length === 2")
    await stage.switches[1].stop()
    await tab.until("document.querySelector('#nodes tbody tr').innerText.includes('DOWN')")
    assert "fs2" in await tab.eval("document.querySelector('#nodes tbody tr').innerText")
    assert (await tab.eval("document.title")).startswith("!")
    await tab.look(dark=True)
    await tab.screenshot(pictures / "node-down-dark.png")


async def test_the_tail_shows_what_matches_and_costs_nothing_before(stage: Stage, tab: Tab, pictures: Path) -> None:
    await stage.set(rate=20)
    await tab.open(stage.url, height=900)
    await tab.until("!document.querySelector('#tail-token').hidden")
    assert stage.worker.operations.tail.watched is False
    await tab.click("#tail-button")
    await tab.until("document.querySelector('#tail-note').innerText.includes('token is missing')")
    await tab.type("#tail-form [name=token]", TOKEN)
    await tab.type("#tail-form [name=names]", "CHANNEL_*")
    await tab.type("#tail-form [name=node]", "fs2")
    await tab.type("#tail-form [name=where]", "Caller-Destination-Number=*")
    await tab.click("#tail-button")
    await tab.until("document.querySelectorAll('#tail li').length >= 10")
    assert stage.worker.operations.tail.watched is True
    lines = await tab.eval("[...document.querySelectorAll('#tail li')].map(line => line.innerText)")
    assert all("fs2" in line and "CHANNEL_" in line and "Caller-Destination-Number=" in line for line in lines)
    await tab.eval("document.querySelector('#tail-title').scrollIntoView()")
    await tab.screenshot(pictures / "tail-light.png", whole=False)
    await tab.click("#tail-button")
    async with asyncio.timeout(20):
        while stage.worker.operations.tail.watched:  # noqa: ASYNC110 - it ends when the socket is seen closed
            await asyncio.sleep(0.05)
    # The one 403 above is the only thing the browser complains about.
    assert len(tab.faults) == 1
    assert "403" in tab.faults[0]


async def test_the_console_sends_a_command_with_the_token(stage: Stage, tab: Tab, pictures: Path) -> None:
    await stage.set(rate=1)
    await tab.open(stage.url, width=390, height=844, dark=True)
    await tab.until("!document.querySelector('#console').hidden")
    await tab.type("#console-form [name=token]", "a wrong token")
    await tab.type("#console-form [name=command]", "status")
    await tab.click("#console-form button")
    await tab.until("document.querySelector('#console-note').innerText.includes('token is missing or wrong')")
    assert not any(line == "status" for switch in stage.switches for line in switch.executed)
    await tab.type("#console-form [name=token]", TOKEN)
    await tab.type("#console-form [name=to]", "all")
    await tab.click("#console-form button")
    await tab.until("document.querySelector('#console-note').innerText.startsWith('ok, executed: yes')")
    output = await tab.text("#console-output")
    assert all(f"{name} (ok)" in output for name in ("fs1", "fs2", "fs3"))
    assert "UP 0 years" in output
    await tab.eval("document.querySelector('#console-title').scrollIntoView()")
    await tab.screenshot(pictures / "console-phone-dark.png", whole=False)
    await tab.type("#console-form [name=command]", "system ls")
    await tab.click("#console-form button")
    await tab.until("document.querySelector('#console-note').innerText.startsWith('denied, executed: no')")


async def test_without_the_setting_there_is_no_console(stage: Stage, tab: Tab) -> None:
    await stage.set(switches=1, console=False, token="")
    await tab.open(stage.url)
    await tab.until("document.querySelectorAll('#nodes tbody tr').length === 1")
    assert await tab.eval("document.querySelector('#console').hidden")
    # Without a token the tail is open to whoever asks this address.
    await tab.click("#tail-button")
    await tab.until("document.querySelectorAll('#tail li').length >= 3")
    assert tab.faults == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
async def test_it_can_be_read_on_any_screen(stage: Stage, tab: Tab, pictures: Path, width: int, dark: bool) -> None:
    await stage.set(rate=3)
    await some_commands(stage)
    await tab.open(stage.url, width=width, height=844, dark=dark)
    await tab.until("document.querySelectorAll('#nodes tbody tr').length === 3")
    await tab.until("document.querySelectorAll('#failed tbody tr').length >= 3")
    await tab.until("document.querySelector('#flow .line').getAttribute('d').split('L').length > 3")
    assert await tab.eval("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    image = await tab.screenshot(pictures / f"{'phone' if width < 600 else 'desk'}-{'dark' if dark else 'light'}.png")
    light = brightness(image)
    assert light < 90 if dark else light > 180
    assert await tab.eval(CONTRAST) == []
    assert await tab.eval(UNLABELLED) == []


async def test_the_page_of_one_worker_shows_the_fleet_under_load(stage: Stage, tab: Tab, pictures: Path) -> None:
    """Thirty nodes, two workers, gaps: all of it is on either's page, also on a phone."""
    await stage.set(switches=30, rate=2, workers=2)
    async with asyncio.timeout(60):
        names = sorted(stage.worker.nodes.names())
        while sorted(name for it in stage.workers for name in it.crew.owned()) != names:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await tab.open(stage.url)
    await tab.until("document.querySelectorAll('#nodes tbody tr').length === 30")
    await tab.until(
        r"/2 workers: bridge-1 \(this page, 1\d nodes\)/.test(document.querySelector('#workers').innerText)"
    )
    other = stage.workers[1].crew.owned()
    name = other[0]
    stage.switches[int(name[2:]) - 1].drop_connections()
    row = f"[...document.querySelectorAll('#nodes tbody tr')].find(row => row.innerText.split(/\\s/)[0] === '{name}')"
    await tab.until(f"{row}.cells[7].innerText.startsWith('1') && {row}.cells[7].innerText.includes('link')")
    # Every node tells events a second and sessions, whoever owns it.
    await tab.until(
        "[...document.querySelectorAll('#nodes tbody tr')].every(row => parseFloat(row.cells[6].innerText) > 0)"
    )
    await some_commands(stage)
    await tab.until("document.querySelector('#failed').innerText.includes('denied')")
    await tab.type("#tail-form [name=token]", TOKEN)
    await tab.type("#tail-form [name=node]", name)
    await tab.click("#tail-button")
    await tab.until("document.querySelectorAll('#tail li').length >= 10")
    lines = await tab.eval("[...document.querySelectorAll('#tail li')].map(line => line.innerText)")
    assert all(name in line for line in lines)
    assert tab.faults == []
    assert await tab.eval("document.querySelector('#silent').innerText") == ""
    for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
        await tab.look(width=width, height=1600, dark=dark)
        assert await tab.eval("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
        assert await tab.eval(CONTRAST) == []
        shown = f"fleet-{'phone' if width < 600 else 'desk'}-{'dark' if dark else 'light'}.png"
        await tab.screenshot(pictures / shown)


# Texts whose contrast with their background is below 4.5:1, the limit of WCAG 2 AA.
CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > .5) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(element.textContent.trim().slice(0, 40) + ' ' + ratio.toFixed(2));
  }
  return bad;
})()"""

# Controls that a screen reader could not name.
UNLABELLED = """[...document.querySelectorAll('input, select, button, table th')]
  .filter(one => !one.textContent.trim() && !(one.labels && one.labels.length)).map(one => one.outerHTML)"""


def pixels(image: bytes) -> Iterator[tuple[int, bytes]]:
    """The raw scan lines of a PNG with their filter bytes."""
    width = int.from_bytes(image[16:20])
    depth = {2: 3, 6: 4}[image[25]]
    data, at = b"", 8
    while at < len(image):
        length, kind = int.from_bytes(image[at : at + 4]), image[at + 4 : at + 8]
        if kind == b"IDAT":
            data += image[at + 8 : at + 8 + length]
        at += length + 12
    raw = zlib.decompress(data)
    step = width * depth + 1
    for line in range(0, len(raw), step):
        yield raw[line], raw[line + 1 : line + step]


def brightness(image: bytes) -> float:
    """Mean of the top left corner's column, 0 to 255: the page's background."""
    depth = {2: 3, 6: 4}[image[25]]
    above = [0] * depth
    total = count = 0
    for filter, line in pixels(image):
        first = line[:depth]
        # Of the first pixel of a line only what is above counts: filters 2 and 4 add it, 3 adds half of it.
        add = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.5, 4: 1.0}[filter]
        above = [(value + int(up * add)) % 256 for value, up in zip(first, above, strict=True)]
        total += sum(above[:3]) / 3
        count += 1
    return total / count


async def test_under_a_firehose_the_tail_is_bounded_and_the_worker_serves(stage: Stage, tab: Tab) -> None:
    await stage.set(switches=1, rate=1)
    await tab.open(stage.url)
    await tab.until("!document.querySelector('#tail-token').hidden")
    await tab.type("#tail-form [name=token]", TOKEN)
    await tab.click("#tail-button")
    await tab.until("document.querySelector('#tail-button').innerText === 'Stop'")
    switch = stage.switches[0]

    async def pour() -> None:
        while True:
            for _ in range(200):
                switch.fire("CUSTOM", {"x": "1"}, subclass="test::flood")
            await asyncio.sleep(0.01)

    pouring = asyncio.create_task(pour())
    try:
        await tab.until("/[1-9].* more than can be read left out/.test(document.querySelector('#tail-note').innerText)")
        await tab.until("document.querySelectorAll('#tail li').length === 200")
        for _ in range(3):
            reply = await stage.client.request({"command": "status"}, timeout=10)
            assert reply.status == "ok"
    except BridgeError as error:
        pytest.fail(str(error))
    finally:
        pouring.cancel()
    assert tab.faults == []
