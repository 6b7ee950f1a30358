#!/usr/bin/env bash
# redis.sh COMMAND...: one command to FreeSWITCH through Redis. REDIS_CLI="redis-cli -h HOST -p PORT" for another server.
set -euo pipefail
cli=${REDIS_CLI:-redis-cli}
id=$(cat /proc/sys/kernel/random/uuid)
command=$(printf '%s' "$*" | sed 's/[\\"]/\\&/g')
$cli XADD esl.cmd '*' data "{\"id\": \"$id\", \"command\": \"$command\", \"reply_to\": \"esl.reply.$id\"}" > /dev/null
$cli --raw BLPOP "esl.reply.$id" 10 | tail -n 1
