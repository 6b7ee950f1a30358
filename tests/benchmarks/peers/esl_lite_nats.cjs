// A relay as a user of esl-lite and nats.js would write it. Arguments: ESL port, bus port.
const { FreeSwitchClient } = require("esl-lite");
const { connect } = require("nats");

const quiet = () => {};
const logger = { info: quiet, debug: quiet, warn: quiet, error: quiet, trace: quiet, fatal: quiet, child: () => logger };

async function main(esl, bus) {
  const client = await connect({ servers: `127.0.0.1:${bus}` });
  const freeswitch = new FreeSwitchClient({ host: "127.0.0.1", port: esl, password: "ClueCon", logger });
  const encoder = new TextEncoder();
  freeswitch.on("ALL", (event) => {
    client.publish(`fs.events.${event.body.eventName}`, encoder.encode(JSON.stringify(event.body.data)));
  });
}

main(Number(process.argv[2]), Number(process.argv[3]));
