"""Commands as a user of greenswitch and redis-py would serve them. Arguments: ESL port, bus port."""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402

import greenswitch  # noqa: E402
import redis  # noqa: E402


def main(esl: int, bus: int) -> None:
    logging.disable(logging.CRITICAL)
    client = redis.Redis("127.0.0.1", bus)
    freeswitch = greenswitch.InboundESL(host="127.0.0.1", port=esl, password="ClueCon")
    freeswitch.connect()
    print("ready", flush=True)
    while True:
        _, data = client.brpop("esl.cmd")
        request = json.loads(data)
        answer = freeswitch.send(f"api {request['command']}")
        client.rpush(request["reply_to"], json.dumps({"id": request["id"], "result": answer.data}))
        client.expire(request["reply_to"], 60)


main(int(sys.argv[1]), int(sys.argv[2]))
