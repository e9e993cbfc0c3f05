"""The answers of a receiver process; runs inside that process (`receiver.py --script answers:NAME`).

Answers depend on the request alone, so that a seeded run is the same each time.
"""

from __future__ import annotations

import zlib

import __main__ as receiver  # the process is `python receiver.py`, its classes are there


def lively(request):
    """Take up to 30 ms; refuse one first attempt in forty."""
    dice = zlib.crc32(request.webhook_id.encode())
    status = 503 if request.attempt == 1 and dice % 40 == 0 else 200
    return receiver.Response(status, delay_s=dice % 31 / 1000)


def moody(request):
    """Answer as the path says: ok, flaky (500 twice), mute (hangs now and then), lost (500), gone (410)."""
    dice = zlib.crc32(request.webhook_id.encode())
    match request.path:
        case "/flaky" if request.attempt < 3:
            return 500
        case "/mute" if request.attempt == 1 and dice % 50 == 0:
            return receiver.Response(delay_s=60)
        case "/lost":
            return 500
        case "/gone":
            return 410
    return receiver.Response(delay_s=dice % 31 / 1000)


def slow(_request):
    """Take 40 ms."""
    return receiver.Response(delay_s=0.04)


def second(_request):
    """Take a second."""
    return receiver.Response(delay_s=1.0)


def fickle(request):
    """Refuse, cut off or delay, by request and attempt."""
    dice = zlib.crc32(f"{request.webhook_id} {request.attempt}".encode()) % 100
    if dice < 6:
        return 500
    return receiver.Response(delay_s=dice % 10 / 1000, cut=dice < 10)
