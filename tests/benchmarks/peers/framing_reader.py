"""A ceiling: only cuts the stream into frames. Arguments: ESL port, events to read; prints ``done``."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from bridge.esl.frames import FrameParser


class Reader(asyncio.BufferedProtocol):
    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self._parser = FrameParser()
        self._left = count
        self._done = done
        self._buffer = memoryview(bytearray(512 * 1024))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"auth ClueCon\n\nevent json ALL\n\n")  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        frames = self._parser.feed(self._buffer[:nbytes])
        self._left -= len([None for frame in frames if frame.content_type == "text/event-json"])  # type: ignore[union-attr]
        if self._left <= 0 and not self._done.done():
            self._done.set_result(None)


async def main(port: int, count: int) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await asyncio.get_running_loop().create_connection(lambda: Reader(count, done), "127.0.0.1", port)
    await done
    print("done", flush=True)
    await asyncio.sleep(3600)


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
