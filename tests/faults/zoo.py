"""A receiver with a cage for each kind of misbehaviour: the path says which; only first attempts meet it.

It notes each request and decision before it acts, as tests/support/receiver.py does; status null where no
head goes out that could be understood. Never here: what the daemon makes of it.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import time

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOTED = ("webhook-id", "webhook-timestamp", "webhook-signature", "x-webhook-attempt")
_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


def _plain(status, *lines):
    head = b"".join(line + b"\r\n" for line in lines)
    return status, b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n%s\r\n" % (status, head)


# Bytes sent at once, and the decision: (status or None, bytes).
SAID = {
    "silence": (None, b""),
    "reset": (None, b""),
    "half a head": (None, b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": (200, _LONG + b"ok"),
    "stalled body": (200, _LONG + b"ok"),
    "dripped head": (None, b""),
    "endless body": (200, b"HTTP/1.1 200 OK\r\n\r\n"),
    "bomb": (
        200,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
        + gzip.compress(bytes(20_000_000)),
    ),
    "broken chunks": (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok"),
    "too long an answer": (200, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more than was said"),
    "huge headers": (
        None,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 4000) for n in range(500)),
    ),
    "garbage": (None, bytes(range(256)) * 40),
    "http 0.9": (None, b"<html>hello</html>"),
    "http 2": (None, b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)),
    "an alert of tls": (None, b"\x15\x03\x01\x00\x02\x02\x46"),
    "a flood of 1xx": (None, b"HTTP/1.1 102 Processing\r\n\r\n" * 100_000),
    "status 099": (None, b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"),
    "metadata": _plain(302, b"Location: http://169.254.169.254/latest/meta-data/"),
    "itself": _plain(307, b"Location: /itself"),
    "wait for ever": _plain(429, b"Retry-After: 1" + b"0" * 300),
    "wait backwards": _plain(503, b"Retry-After: -5"),
    "wait until": _plain(429, b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"),
    "wait for nan": _plain(503, b"Retry-After: nan", b"Retry-After: 1e308"),
    "cookies": _plain(
        401, b"Set-Cookie: a=" + b"x" * 4000, b"WWW-Authenticate: Negotiate", b"Clear-Site-Data: *"
    ),
    "escapes": (500, b"HTTP/1.1 500 \x1b[31m\r\nContent-Length: 6\r\n\r\n\x00\xff\x1b[2J"),
    "closed in the race": (200, OK),
}
RESET = {"reset", "half a head", "half a body"}
KEPT_OPEN = {"silence", "stalled body"}


class Zoo:
    """The handler of `receiving` (tests/support/fault_server.py); `entries` is for tests/support/checker.py."""

    def __init__(self):
        self.entries = []

    async def __call__(self, visit):
        while True:
            head, body = await visit.request()
            path, headers = _parsed(head)
            cage = path[1:].replace("_", " ")
            first = headers["x-webhook-attempt"] == "1"
            status, said = SAID.get(cage, (None, b"")) if first else (200, OK)
            self.entries.append(_entry(path, headers, body, status))
            await visit.send(said)
            if not first:
                continue
            if await _misbehave(cage, visit):
                return


async def _misbehave(cage, visit):
    """Misbehave in ways that bytes cannot express; return True if the connection is over."""
    if cage in RESET:
        visit.reset()
    elif cage in KEPT_OPEN:
        await visit.gone()
    elif cage == "dripped head":
        for byte in OK * 100:
            await visit.send(bytes([byte]))
            await asyncio.sleep(1)
    elif cage == "endless body":
        while True:
            await visit.send(bytes(65536))
    elif cage == "closed in the race":
        await visit.reader.read(1)  # the next request has begun
        visit.reset()
    elif SAID[cage][0] is not None and cage not in {"bomb", "broken chunks"}:
        return False
    return True


def _parsed(head):
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return lines[0].split(" ")[1], headers


def _entry(path, headers, body, status):
    return {
        "path": path,
        "status": status,
        "wall": time.time(),
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode(),
        **{name: headers.get(name) for name in NOTED},
    }
