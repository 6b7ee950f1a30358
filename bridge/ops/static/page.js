'use strict';
// Whatever comes from the worker becomes text nodes; nothing here ever writes markup.
const by = id => document.getElementById(id);
const none = value => value === undefined || value === null || value === '';
const whole = value => Number(value || 0).toLocaleString('en');
const rate = value => value >= 100 ? whole(Math.round(value)) : Number(value || 0).toFixed(value && value < 10 ? 1 : 0);
const span = ms => none(ms) ? '' : ms < 1 ? '<1 ms' : ms < 1000 ? Math.round(ms) + ' ms' : ms < 60000 ? (ms / 1000).toFixed(1) + ' s' : Math.round(ms / 60000) + ' min';
const clock = at => at ? new Date(at * 1000).toLocaleTimeString([], { hour12: false }) : '';
const stateClass = { UP: 'good', DOWN: 'bad', SUSPECT: 'warn', CONNECTING: 'warn', SYNCING: 'warn', DRAINING: 'warn' };
const stateOrder = ['DOWN', 'SUSPECT', 'CONNECTING', 'SYNCING', 'DRAINING', 'UP'];
const outcomeClass = status => status === 'ok' ? 'good' : ['error', 'timeout', 'connection_lost'].includes(status) ? 'bad' : 'warn';
const ROWS = 200, LINES = 200;

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === 'class') element.className = value; else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => !none(child)));
  return element;
}

// --- tables: rows are kept and only their texts replaced, so that nothing jumps and a selection stays ---
function fill(id, rows, empty) {
  const table = by(id), body = table.tBodies[0];
  const labels = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
  table.classList.toggle('idle', !rows.length);
  if (!rows.length) {
    const cell = make('td', { class: 'none', colspan: labels.length }, empty);
    body.replaceChildren(make('tr', {}, cell));
    return;
  }
  if (body.querySelector('.none')) body.replaceChildren();
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  while (body.rows.length < rows.length) body.append(make('tr', {}, ...labels.map(label => make('td', { 'data-label': label }))));
  rows.forEach((cells, number) => {
    cells.forEach((content, column) => {
      const cell = body.rows[number].cells[column];
      const { text, kind = '', code = false, reason = '' } = typeof content === 'object' && content ? content : { text: content };
      const shown = none(text) ? '' : String(text);
      const key = shown + '\n' + kind + '\n' + reason;
      if (cell.dataset.key === key) return;
      cell.dataset.key = key;
      const numeric = table.tHead.rows[0].cells[column].className;
      const long = column === 0 || code || shown.length > 10 || reason;
      cell.className = [numeric, kind, shown ? '' : 'empty', long ? 'long' : ''].filter(Boolean).join(' ');
      const inner = make('div', {}, code ? make('code', {}, shown) : shown);
      if (reason) inner.append(make('span', { class: 'reason' }, reason));
      cell.replaceChildren(inner);
    });
  });
}

function card(name, value, kind) {
  return make('div', { class: 'card' }, make('b', { class: kind || '' }, value), make('span', { class: 'soft' }, name));
}

function drawFlow(events) {
  const top = Math.max(1, ...events), last = events.length ? events[events.length - 1] : 0, slots = 119;
  const points = events.map((value, number) =>
    [(600 * (number + slots + 1 - events.length) / slots).toFixed(1), (116 - 96 * value / top).toFixed(1)]);
  const line = points.length ? 'M' + points.map(point => point.join(' ')).join('L') : '';
  const area = points.length ? line + 'L600 120L' + points[0][0] + ' 120Z' : '';
  by('flow').querySelector('.line').setAttribute('d', line);
  by('flow').querySelector('.area').setAttribute('d', area);
  by('flow').setAttribute('aria-label', 'Events per second: now ' + rate(last) + ', most in two minutes ' + rate(top));
  by('flow-top').textContent = 'most ' + rate(Math.max(0, ...events));
  by('flow-now').textContent = 'now ' + rate(last);
}

// --- nodes ---
let latest = null;
function drawNodes() {
  const find = by('find').value.trim().toLowerCase();
  const all = latest.nodes || [];
  const found = all.filter(node => !find || [node.name, node.state, node.owner, ...(node.tags || [])].some(text => String(text || '').toLowerCase().includes(find)));
  found.sort((a, b) => stateOrder.indexOf(a.state) - stateOrder.indexOf(b.state) || a.name.localeCompare(b.name, 'en', { numeric: true }));
  fill('nodes', found.slice(0, ROWS).map(node => {
    const lag = none(node.lag) ? '' : span(node.lag * 1000), gap = node.last_gap;
    return [
      { text: node.name, reason: (node.tags || []).join(', ') },
      { text: node.state, kind: stateClass[node.state], reason: node.state === 'UP' ? '' : node.reason },
      node.owner,
      none(node.sessions) ? '' : whole(node.sessions) + (node.max_sessions ? ' / ' + whole(node.max_sessions) : ''),
      none(node.idle_cpu) ? '' : Math.round(100 - node.idle_cpu) + ' %',
      { text: lag, kind: node.lag > 5 ? 'bad' : node.lag > 1 ? 'warn' : '' },
      none(node.rate) ? '' : rate(node.rate),
      { text: whole(node.gaps), kind: node.gaps ? 'warn' : '', reason: gap ? gap.reason + ' ' + clock(gap.at) : '' },
      none(node.commands_in_flight) ? '' : whole(node.commands_in_flight) + (node.commands_waiting ? ' + ' + whole(node.commands_waiting) : ''),
    ];
  }), find ? 'No node matches.' : 'No node is configured.');
  by('nodes-note').textContent = found.length > ROWS ? 'and ' + whole(found.length - ROWS) + ' more: narrow it down with Find' : '';
  drawWorkers();
  const targets = ['all', ...all.map(node => node.name)].slice(0, ROWS);
  const list = by('targets');
  if (list.childElementCount !== targets.length) list.replaceChildren(...targets.map(value => make('option', { value })));
}

function drawWorkers() {
  const workers = (latest.fleet || {}).workers || [], silent = latest.silent || [];
  const told = workers.map(one => {
    const more = [one.worker === latest.worker ? 'this page' : '', one.state === 'up' ? '' : one.state, one.nodes === 1 ? '1 node' : whole(one.nodes) + ' nodes'];
    return one.worker + ' (' + more.filter(Boolean).join(', ') + ')';
  });
  by('workers').textContent = workers.length > 1 ? whole(workers.length) + ' workers: ' + told.join(', ') : '';
  by('silent').textContent = silent.length ? 'Missing here: events, gaps and commands of ' + silent.join(', ') + ', which does not answer.' : '';
}

function badge(id, text, kind) { by(id).textContent = text; by(id).className = 'badge ' + kind; }

function draw(state) {
  latest = state;
  const totals = state.totals || {}, buffer = state.buffer || {}, bus = state.bus || {}, nodes = state.nodes || [];
  const flow = state.rates || { events: [], commands: [] }, journal = state.journal || {};
  const up = nodes.filter(node => node.state === 'UP').length;
  const sessions = nodes.reduce((sum, node) => sum + (node.sessions || 0), 0);
  by('worker').textContent = (state.worker || '') + (state.version ? ' · ' + state.version : '');
  badge('bus', (bus.url || 'bus') + (bus.connected ? '' : ' not connected'), bus.connected ? 'good' : 'bad');
  badge('ready', state.ready ? 'ready' : 'not ready' + (state.not_ready ? ': ' + state.not_ready : ''), state.ready ? 'good' : 'warn');
  document.title = (nodes.length === up && bus.connected ? '' : '! ') + 'esl-bridge ' + (state.worker || '');
  const lastOf = list => list && list.length ? list[list.length - 1] : 0;
  by('cards').replaceChildren(
    card('nodes up', whole(up) + ' / ' + whole(nodes.length), up === nodes.length ? 'good' : 'bad'),
    card('sessions', whole(sessions)),
    card('events/s', rate(lastOf(flow.events))),
    card('events published', whole(totals.events_published)),
    card('events dropped', whole(totals.events_dropped), totals.events_dropped ? 'bad' : ''),
    card('waiting for the bus', whole(buffer.events), buffer.events > 1000 ? 'warn' : ''),
    card('commands/s', rate(lastOf(flow.commands))),
    card('commands in flight', whole(state.in_flight)));
  drawFlow(flow.events || []);
  drawNodes();
  const outcomes = Object.entries(journal.outcomes || {}).sort((a, b) => b[1] - a[1]);
  by('outcomes').replaceChildren(...(outcomes.length
    ? outcomes.map(([status, count]) => make('span', { class: 'badge ' + outcomeClass(status) }, status + ' ' + whole(count)))
    : [make('span', { class: 'soft' }, 'No command yet.')]));
  const hand = state.in_hand || [];
  by('in-flight-count').textContent = state.in_flight > hand.length ? 'the oldest ' + hand.length + ' of ' + whole(state.in_flight) : '';
  fill('in-flight', hand.map(one => [{ text: one.command, code: true }, one.node, span(one.ms)]), 'Nothing is in flight.');
  fill('failed', (journal.failed || []).map(one => [{ text: one.command, code: true },
    { text: one.status, kind: outcomeClass(one.status), reason: 'executed: ' + one.executed }, one.node, one.error, span(one.ms), clock(one.at)]), 'No command failed.');
  fill('slowest', (journal.slowest || []).slice(0, 10).map(one => [{ text: one.command, code: true },
    { text: one.status, kind: outcomeClass(one.status) }, one.node, span(one.ms), clock(one.at)]), 'No command yet.');
  by('console').hidden = !state.console;
  by('tail-token').hidden = !state.tail_token;
}

by('find').addEventListener('input', () => latest && drawNodes());

function follow() {
  const source = new EventSource('feed');
  source.onmessage = message => { by('link').hidden = true; draw(JSON.parse(message.data)); };
  source.onerror = () => {
    by('link').hidden = false;
    // A refused stream is not tried again by the browser.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  };
}
follow();

// --- the live tail: fetch and not EventSource, because of the token's header ---
let listening = null, skipped = 0, shown = 0;
function tailLine(line) {
  const what = make('span', { class: 'what' });
  Object.entries(line.headers).forEach(([name, value], number) => {
    if (number) what.append('  ');
    what.append(make('span', { class: 'soft' }, name + '='), value);
  });
  return make('li', {}, make('span', { class: 'soft' }, clock(line.at)), make('span', {}, line.node),
    make('span', { class: 'name' }, line.name), what);
}
function stopTail(note) {
  if (listening) listening.abort();
  listening = null;
  by('tail-button').textContent = 'Listen';
  by('tail-note').textContent = note;
}
async function listen(query, token) {
  const stop = listening = new AbortController();
  by('tail-button').textContent = 'Stop';
  by('tail').hidden = false; by('tail').replaceChildren();
  skipped = shown = 0;
  by('tail-note').textContent = 'Listening.';
  try {
    const answer = await fetch('tail?' + query, { signal: stop.signal, cache: 'no-store', headers: token ? { Authorization: 'Bearer ' + token } : {} });
    if (!answer.ok) { stopTail('Refused: ' + (await answer.text()).trim()); return; }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split('\n\n');
      rest = parts.pop();
      for (const part of parts) if (part.startsWith('data: ')) takeTail(JSON.parse(part.slice(6)));
    }
    if (listening === stop) stopTail('The worker ended the stream.');
  } catch (error) {
    if (listening === stop) stopTail('The stream broke: ' + error.message);
  }
}
function takeTail(batch) {
  const list = by('tail');
  shown += batch.lines.length; skipped += batch.skipped;
  list.prepend(...batch.lines.reverse().map(tailLine));
  while (list.childElementCount > LINES) list.lastElementChild.remove();
  by('tail-note').textContent = whole(shown) + ' shown' + (skipped ? ', ' + whole(skipped) + ' more than can be read left out' : '') + '.';
}
by('tail-form').addEventListener('submit', event => {
  event.preventDefault();
  if (listening) { stopTail(whole(shown) + ' shown. Stopped.'); return; }
  const fields = new FormData(event.target), query = new URLSearchParams();
  for (const name of ['names', 'node', 'where']) if (fields.get(name)) query.append(name, fields.get(name));
  listen(query, fields.get('token'));
});

// --- the console ---
by('console-form').addEventListener('submit', async event => {
  event.preventDefault();
  const fields = new FormData(event.target), request = { op: fields.get('op'), command: fields.get('command') };
  if (fields.get('to')) request.to = fields.get('to');
  const note = by('console-note'), output = by('console-output');
  note.className = 'note soft'; note.textContent = 'Sent, waiting for the reply.';
  try {
    const answer = await fetch('console', { method: 'POST', cache: 'no-store', body: JSON.stringify(request),
      headers: { 'Content-Type': 'application/json', Authorization: 'Bearer ' + fields.get('token') } });
    const reply = await answer.json();
    if (!answer.ok) { note.className = 'note bad'; note.textContent = reply.error; output.hidden = true; return; }
    note.className = 'note ' + outcomeClass(reply.status);
    note.textContent = reply.status + ', executed: ' + reply.executed + (reply.node ? ', on ' + reply.node : '') + ', ' + span(reply.elapsed_ms);
    const parts = reply.replies && reply.replies.length ? reply.replies : [reply];
    output.textContent = parts.map(part => (reply.replies && reply.replies.length ? part.node + ' (' + part.status + ')\n' : '') + (part.result || part.error || '')).join('\n');
    output.hidden = !output.textContent.trim();
  } catch (error) {
    note.className = 'note bad'; note.textContent = 'No answer: ' + error.message;
  }
});
