// node nats.mjs [nats://HOST:PORT]: follow answered calls, ask FreeSWITCH for its status.
import { randomUUID } from "node:crypto";
import { connect, ErrorCode } from "nats";

const bus = await connect({ servers: process.argv[2] ?? "nats://127.0.0.1:4222", maxReconnectAttempts: -1 });

async function command(request, timeoutMs = 5000) {
  const body = JSON.stringify({ id: randomUUID(), timeout_ms: timeoutMs, ...request });
  try {
    // A second more than the bridge has: its own "timeout" says more than ours would.
    return (await bus.request("esl.cmd", body, { timeout: timeoutMs + 1000 })).json();
  } catch (error) {
    if (error.code === ErrorCode.NoResponders) return { status: "unavailable", executed: "no", error: "no worker" };
    return { status: "timeout", executed: "unknown", error: String(error) };
  }
}

const reply = await command({ command: "status" });
console.log(reply.status, `executed=${reply.executed}`, (reply.result ?? reply.error).split("\n")[0]);

const last = new Map(); // topic and epoch -> sequence: a hole is a loss
for await (const message of bus.subscribe("fs.events.CHANNEL_ANSWER")) {
  const event = message.json();
  const key = `${message.subject} ${event.epoch}`;
  const lost = last.has(key) ? Number(event.sequence) - last.get(key) - 1 : 0;
  last.set(key, Number(event.sequence));
  if (lost > 0) console.log(`lost ${lost} events`);
  console.log(event.node, event.subject, event.data["Caller-Destination-Number"], "answered");
}
