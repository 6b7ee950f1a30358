// node redis.mjs [redis://HOST:PORT]: follow answered calls, ask FreeSWITCH for its status.
import { randomUUID } from "node:crypto";
import { Redis } from "ioredis";

const url = process.argv[2] ?? "redis://127.0.0.1:6379";
// A connection that waits or listens can do nothing else.
const [writer, waiter, listener] = [new Redis(url), new Redis(url), new Redis(url)];

async function command(request, timeoutMs = 5000) {
  const id = randomUUID();
  const reply_to = `esl.reply.${id}`;
  const body = JSON.stringify({ id, reply_to, timeout_ms: timeoutMs, ...request });
  await writer.xadd("esl.cmd", "*", "data", body);
  const found = await waiter.blpop(reply_to, timeoutMs / 1000 + 1);
  return found ? JSON.parse(found[1]) : { id, status: "timeout", executed: "unknown", error: "no reply" };
}

const reply = await command({ command: "status" });
console.log(reply.status, `executed=${reply.executed}`, (reply.result ?? reply.error).split("\n")[0]);

listener.on("message", (channel, text) => {
  const event = JSON.parse(text);
  console.log(event.node, event.subject, event.data["Caller-Destination-Number"], "answered");
});
await listener.subscribe("fs.events.CHANNEL_ANSWER");
