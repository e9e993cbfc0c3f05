"""Memory: the largest payloads times the concurrency stay below a cap, and a kill for want of it is a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from support import checker
from support.events import emit

LARGE = 9_900_000  # bytes of a payload; the limit is 10 MB
CONCURRENCY = 100
BATCH_MAX = 50
SETTINGS = {
    "delivery_concurrency": CONCURRENCY,
    "recorder_batch_max": BATCH_MAX,
    "delivery_endpoint_concurrency": 50,
}
CAP_MB = 300  # six such payloads at once, as read and as sent, and what the program needs; 190 were measured


def _memory_mb(daemon, what="VmHWM"):
    """Return the peak resident memory of a daemon, or another line of /proc/PID/status."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(what)


@pytest.mark.short
async def test_the_largest_payloads_times_the_concurrency_stay_below_a_cap(
    database, db, start, receiving, delivered
):
    """40 payloads of 9.9 MB to two endpoints, 100 requests allowed at once: 800 MB, and small ones beside them."""
    daemon = await start(database, **SETTINGS)
    async with receiving(db, "answers:slow", 2) as running:
        await emit(db, 40, payload=json.dumps("x" * LARGE))
        await emit(db, 100)
        await delivered(db, 280, 100)
        peak = _memory_mb(daemon)
        print(f"peak of the daemon's memory: {peak:.0f} MB")
        assert peak < CAP_MB
        await checker.check(db, running.entries(), repeats_max=0)
    assert not daemon.said("database.lost")
    assert not daemon.noise


async def test_many_payloads_just_small_enough_to_travel_with_their_page(
    database, db, start, receiving, delivered
):
    """16 KB each, 8,000 of them: payloads that wait in memory are bounded by `delivery.queue_bytes_max`."""
    daemon = await start(database, delivery_queue_bytes_max=16_777_216, **SETTINGS)
    before = _memory_mb(daemon)
    async with receiving(db, "answers:slow") as running:
        await emit(db, 8000, payload=json.dumps("x" * 16_000))
        await delivered(db, 8000, 100)
        peak = _memory_mb(daemon)
        print(f"{before:.0f} MB before, {peak:.0f} MB at the most")
        assert peak - before < 100  # the queue, requests in flight, and a page that is being read
        await checker.check(db, running.entries(), repeats_max=0)
    assert not daemon.noise


# No memory left ---------------------------------------------------------------------------------------------------

LIMITS = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]  # version 1, version 2
NAMES = ["memory.limit_in_bytes", "memory.max"]


@pytest.fixture
def limited():
    """Return `limited(pid, bytes)`: gives a process a cgroup of its own in which it may use so much memory."""
    made = []

    def limit(pid, size):
        for root, name in zip(LIMITS, NAMES, strict=True):
            group = root / f"pghookd-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                made.append(group)
                if (group / name).exists():
                    (group / "cgroup.procs").write_text(str(pid))
                    (group / name).write_text(str(size))
                    return
        pytest.skip("no right to make a cgroup that limits memory")

    yield limit
    for group in made:
        group.rmdir()


async def test_killed_for_want_of_memory(database, db, start, receiving, until, delivered, limited):
    """As P1: requests in flight or unrecorded come again, nothing is lost."""
    daemon = await start(database, **SETTINGS)
    async with receiving(db, "answers:slow", 2) as running:
        await emit(db, 1000)
        await until(lambda: len(running.entries()) > 300)
        limited(daemon.pid, int(_memory_mb(daemon, "VmRSS") * 2**20) + 20_000_000)
        await emit(db, 20, payload=json.dumps("x" * LARGE))
        assert await daemon.ended(60) == -signal.SIGKILL
        assert not daemon.noise
        await start(database, **SETTINGS)
        await delivered(db, 2040, 100)
        await checker.check(db, running.entries(), repeats_max=CONCURRENCY + BATCH_MAX)
