"""The web page: one self-contained HTML text that shows ``/nodes``, refreshed by fetch, light and dark.

This room is text only; whatever comes from outside reaches the document as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1a1d21; --soft: #667085; --line: #dfe3e8;
  --good: #067647; --warn: #b54708; --bad: #b42318; --accent: #175cd3; }
@media (prefers-color-scheme: dark) { :root { --bg: #101317; --card: #181c22; --ink: #e8eaed; --soft: #98a2b3;
  --line: #2a3038; --good: #47cd89; --warn: #fdb022; --bad: #f97066; --accent: #84adff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.25rem; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 70rem; margin: 0 auto; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; margin-bottom: 1rem; }
h1 { font-size: 1.25rem; margin: 0; }
h2 { font-size: .8rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft); margin: 1.5rem 0 .5rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .5rem .9rem; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .8rem; }
tr:last-child td { border-bottom: 0; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
svg { display: block; width: 100%; height: 64px; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; margin-top: .75rem; }
polyline { fill: none; stroke: var(--accent); stroke-width: 2; vector-effect: non-scaling-stroke; }
a { color: var(--accent); }
"""

_SCRIPT = """
'use strict';
const by = id => document.getElementById(id);
const none = v => v === undefined || v === null;
const shown = v => none(v) || v === '' ? '\\u2013' : String(v);
const count = n => Number(n || 0).toLocaleString('en');
const colours = { UP: 'good', SUSPECT: 'warn', CONNECTING: 'warn', SYNCING: 'warn', DRAINING: 'warn', DOWN: 'bad' };
let before = null;
const history = [];
function card(name, value, kind) {
  const box = document.createElement('div'), big = document.createElement('b'), small = document.createElement('span');
  box.className = 'card'; big.textContent = value; if (kind) big.className = kind;
  small.className = 'soft'; small.textContent = name; box.append(big, small); return box;
}
function row(cells) {
  const line = document.createElement('tr');
  for (const [text, kind] of cells) {
    const cell = document.createElement('td');
    cell.textContent = shown(text); if (kind) cell.className = kind; line.append(cell);
  }
  return line;
}
const ms = s => none(s) ? '' : s < 1 ? Math.round(s * 1000) + ' ms' : s.toFixed(1) + ' s';
function draw(data) {
  const now = performance.now() / 1000, totals = data.totals || {}, bus = data.bus || {}, buffer = data.buffer || {};
  let events = 0, commands = 0;
  if (before) {
    const passed = Math.max(now - before.now, .001);
    events = Math.max(0, (totals.events_published || 0) - before.events) / passed;
    commands = Math.max(0, (totals.commands || 0) - before.commands) / passed;
    history.push(events); if (history.length > 120) history.shift();
  }
  before = { now, events: totals.events_published || 0, commands: totals.commands || 0 };
  by('worker').textContent = 'worker ' + shown(data.worker) + (data.version ? ' \\u00b7 ' + data.version : '');
  by('bus').textContent = shown(bus.url) + (bus.connected ? ' connected' : ' not connected');
  by('bus').className = bus.connected ? 'good' : 'bad';
  by('cards').replaceChildren(
    card('events/s', events.toFixed(events < 10 ? 1 : 0)), card('events published', count(totals.events_published)),
    card('events dropped', count(totals.events_dropped), totals.events_dropped ? 'bad' : ''),
    card('commands/s', commands.toFixed(1)), card('commands answered', count(totals.commands)),
    card('commands failed', count(totals.commands_failed)), card('in flight', count(data.in_flight)),
    card('waiting for the bus', count(buffer.events), buffer.events ? 'warn' : ''));
  const top = Math.max(1, ...history);
  const point = (v, i) => (i / 119 * 600).toFixed(1) + ',' + (60 - v / top * 54).toFixed(1);
  by('line').setAttribute('points', history.map(point).join(' '));
  by('nodes').replaceChildren(...(data.nodes || []).map(n => row([[n.name], [n.state, colours[n.state]],
    [none(n.sessions) ? '' : n.sessions + (n.max_sessions ? ' / ' + n.max_sessions : '')],
    [none(n.idle_cpu) ? '' : Number(n.idle_cpu).toFixed(0) + ' %'], [ms(n.lag)],
    [count(n.events)], [count(n.reconnects)], [n.owner], [n.reason, 'soft']])));
  by('empty').hidden = (data.nodes || []).length > 0;
}
async function refresh() {
  try {
    const answer = await fetch('nodes', { cache: 'no-store' });
    draw(await answer.json());
    by('fault').textContent = '';
  } catch (error) {
    by('fault').textContent = 'the worker does not answer';
  }
  setTimeout(refresh, 1000);
}
refresh();
"""


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>esl-bridge</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>esl-bridge</h1>
<span id="worker" class="soft"></span>
<span id="bus"></span>
<span id="fault" class="bad" role="status"></span>
</header>
<section class="cards" id="cards"></section>
<svg viewBox="0 0 600 64" preserveAspectRatio="none" role="img" aria-label="events per second, last two minutes">
<polyline id="line" points=""></polyline>
</svg>
<h2>Nodes</h2>
<div class="scroll">
<table>
<thead><tr><th>node</th><th>state</th><th>sessions</th><th>idle CPU</th><th>lag</th><th>events</th><th>reconnects</th>
<th>owner</th><th>reason</th></tr></thead>
<tbody id="nodes"></tbody>
</table>
</div>
<p id="empty" class="soft" hidden>No nodes are configured.</p>
<p class="soft"><a href="nodes">/nodes</a> <a href="metrics">/metrics</a> <a href="ready">/ready</a>
<a href="live">/live</a></p>
</main>
</body>
</html>
"""
