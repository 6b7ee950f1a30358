#!/usr/bin/env bash
# nats.sh HOST PORT COMMAND...: one command to FreeSWITCH through NATS, in bash alone: its protocol is lines of text.
set -euo pipefail
host=$1 port=$2
shift 2
command=$(printf '%s' "$*" | sed 's/[\\"]/\\&/g')
inbox="_INBOX.$(tr -d - < /proc/sys/kernel/random/uuid)"
request="{\"command\": \"$command\"}"
exec 3<> "/dev/tcp/$host/$port"
read -r -t 5 _ <&3 # INFO
printf 'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB %s 1\r\nPUB esl.cmd %s %d\r\n%s\r\n' \
  "$inbox" "$inbox" "$(printf '%s' "$request" | wc -c)" "$request" >&3
while read -r -t 10 verb _ _ first rest <&3; do
  case $verb in
    PING*) printf 'PONG\r\n' >&3 ;;
    MSG) head -c "${first%$'\r'}" <&3; echo; exit 0 ;;            # MSG subject sid bytes
    HMSG)                                                          # HMSG subject sid header-bytes total-bytes
      total=${rest%$'\r'}
      head -c "$total" <&3 | tail -c "+$((first + 1))"
      [ "$total" -gt "$first" ] && { echo; exit 0; }
      echo "no worker listens" >&2; exit 69 ;;
    -ERR*) echo "$verb $first $rest" >&2; exit 69 ;;
  esac
done
echo "no reply" >&2
exit 69
