"""The yardstick: a plain aiohttp loop, a default ClientSession, same body and signature, no database.

usage: yardstick.py URL REQUESTS IN_FLIGHT      prints requests per second
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import sys
import time

import aiohttp
import uvloop

KEY = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
PAYLOAD = b'{"id" : 1042, "x" : "' + b"a" * 400 + b'"}'


async def main(url: str, requests: int, in_flight: int) -> None:
    numbers = iter(range(requests))

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            identity = f"evt_{number:028x}"
            body = b'{"id":"%s","type":"order_created","timestamp":"2026-11-24T10:15:00.123Z","data":%s}' % (
                identity.encode(),
                PAYLOAD,
            )
            now = int(time.time())
            digest = hmac.new(KEY, b"%s.%d.%s" % (identity.encode(), now, body), hashlib.sha256).digest()
            headers = {
                "content-type": "application/json",
                "user-agent": "yardstick/1",
                "webhook-id": identity,
                "webhook-timestamp": str(now),
                "webhook-signature": "v1," + base64.b64encode(digest).decode(),
                "x-webhook-topic": "order_created",
                "x-webhook-source": "https://shop.example",
                "x-webhook-attempt": "1",
                "x-webhook-triggered-at": "2026-11-24T10:15:00.123Z",
            }
            async with session.post(url, data=body, headers=headers) as response:
                await response.read()

    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(in_flight)))
        print(requests / (time.perf_counter() - started))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
