"""What a stream's entries need that no single command does: where one stands, and, as scripts, whose it is.

This room never asks the server.
"""

from __future__ import annotations

from bridge.bus.redis.entry import reply_if

GROUP = b"esl-bridge"
# An entry that is there and pending with nobody is still ours: somebody deleted the consumer that had it.
IF_OURS = reply_if(
    b"(redis.call('XPENDING', KEYS[1], ARGV[3], ARGV[4], ARGV[4], 1)[1]"
    b" or {0, #redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4]) > 0 and ARGV[5]})[2] == ARGV[5]",
    b"redis.call('XACK', KEYS[1], ARGV[3], ARGV[4]) redis.call('XDEL', KEYS[1], ARGV[4])",
)
# Of these entries those that are still the consumer's are renewed, in one step: another may claim any at any time. The
# second list names those that were deleted from the stream while they were ours: nobody else can have one ever again.
RENEW = b"""local held = {}
for i = 4, #ARGV do held[ARGV[i]] = true end
local mine, gone = {}, {}
local function renew(id, ...)
  mine[#mine + 1] = id
  if #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID', ...) == 0 then gone[#gone + 1] = id end
end
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], ARGV[#ARGV], ARGV[3], ARGV[2])) do
  if held[entry[1]] then
    held[entry[1]] = false
    renew(entry[1])
  end
end
for i = 4, #ARGV do
  local id = ARGV[i]
  if held[id] and not redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
    and #redis.call('XRANGE', KEYS[1], id, id) > 0 then renew(id, 'FORCE') end
end
return {mine, gone}"""


def place(ident: bytes) -> tuple[int, int]:
    """Where an entry stands in its stream."""
    milliseconds, _, number = ident.partition(b"-")
    return int(milliseconds), int(number)
