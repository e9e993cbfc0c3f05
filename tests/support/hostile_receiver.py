"""A hostile receiver as a process of its own: the path of each request sets how it behaves.

    /ok             200 at once                      /slow/S         200 after S seconds
    /fast-then/S    200 at once until `/turn` was    /status/N       that status; /status/302 points elsewhere
                    posted to, then after S seconds  /again/S        429 with Retry-After: S
    /hang           never                            /drip           a response, one byte a second
    /close          ends the connection unanswered   /flood          headers without end
    /huge           a body of 99 GB, as much of it   /chunks         chunks of one byte
                    as is taken

`python hostile_receiver.py` prints two ports: HTTP, on ADDRESSES too, and one that accepts connections and never
says a word (for TLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import uvloop

ADDRESSES = [
    f"127.1.{n // 250}.{n % 250 + 1}" for n in range(700)
]  # each is a host of its own for the daemon
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
slow = asyncio.Event()


def _head(status, *lines):
    return "\r\n".join((f"HTTP/1.1 {status} X", *lines, "content-length: 0", "", "")).encode()


async def _ok(_value, writer):
    writer.write(OK)


async def _slow(value, writer):
    await asyncio.sleep(float(value))
    writer.write(OK)


async def _fast_then(value, writer):
    await _slow(value if slow.is_set() else 0, writer)


async def _turn(_value, writer):
    slow.set()
    writer.write(OK)


async def _hang(_value, _writer):
    await asyncio.Event().wait()


async def _status(value, writer):
    writer.write(_head(value, "location: /hang"))


async def _again(value, writer):
    writer.write(_head(429, f"retry-after: {value}"))


async def _close(_value, _writer):
    raise ConnectionAbortedError


async def _drip(_value, writer):
    for byte in b"HTTP/1.1 200 OK\r\nx-drip: " + b"x" * 1000:
        writer.write(bytes((byte,)))
        await asyncio.sleep(1.0)


async def _without_end(writer, start, piece):
    writer.write(b"HTTP/1.1 200 OK\r\n" + start)
    while True:
        writer.write(piece)
        await writer.drain()


async def _flood(_value, writer):
    await _without_end(writer, b"", b"x-more: " + b"y" * 500 + b"\r\n")


async def _huge(_value, writer):
    await _without_end(writer, b"content-length: 99000000000\r\n\r\n", b"z" * 16384)


async def _chunks(_value, writer):
    await _without_end(writer, b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n")


ANSWERS = {
    "ok": _ok,
    "slow": _slow,
    "fast-then": _fast_then,
    "turn": _turn,
    "hang": _hang,
    "status": _status,
    "again": _again,
    "close": _close,
    "drip": _drip,
    "flood": _flood,
    "huge": _huge,
    "chunks": _chunks,
}


async def _serve(reader, writer):
    with contextlib.suppress(Exception):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            size = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(size)
            kind, _, value = head.split(b" ")[1].decode("latin-1").strip("/").partition("/")
            await ANSWERS.get(kind, _ok)(value.partition("/")[0], writer)
            await writer.drain()
    writer.close()


async def _silent(reader, writer):
    with contextlib.suppress(Exception):
        while await reader.read(65536):
            pass
    writer.close()


async def main():
    answering = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=2048, limit=2**24)
    port = answering.sockets[0].getsockname()[1]
    elsewhere = await asyncio.start_server(_serve, ADDRESSES, port, limit=2**24)
    silent = await asyncio.start_server(_silent, "127.0.0.1", 0, backlog=2048)
    print(port, silent.sockets[0].getsockname()[1], flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    for server in (answering, elsewhere, silent):
        server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main())
