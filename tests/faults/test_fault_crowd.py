"""Several instances on one database, one of them by mistake: one owner at any time, and no repeat without a fault."""

from __future__ import annotations

import asyncio

import pytest

from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT
from support.events import emit

SETTINGS = {**VIGILANT, "database_lease_s": 3}
READING = "reading the log"


async def _start_four(start, database):
    return list(await asyncio.gather(*(start(database, ready="", **SETTINGS) for _ in range(4))))


def _owners(daemons):
    return [each for each in daemons if each.said("daemon.ready", status=READING)]


async def test_four_instances_without_a_fault(database, db, start, receiving, until, delivered):
    daemons = await _start_four(start, database)
    await until(lambda: _owners(daemons), 20)
    async with receiving(db, "answers:lively", 3) as running:
        for n in range(1, 6):
            await emit(db, 300)
            await delivered(db, 900 * n)
        found = await checker.check(db, running.entries(), repeats_max=0)
        assert found.repeats == 0
    assert len(_owners(daemons)) == 1
    assert not any(each.said("database.lost") or each.noise for each in daemons)


async def test_of_four_instances_the_owner_is_killed_until_one_is_left(
    database, db, start, receiving, until, delivered
):
    daemons = await _start_four(start, database)
    async with receiving(db) as running:
        await emit(db, 3000)
        for n in range(1, 4):
            await until(lambda: _owners(daemons), 20)
            await until(lambda n=n: len(running.entries()) > n * 400, 30)
            [owner] = _owners(daemons)
            await owner.kill()
            daemons.remove(owner)
        await delivered(db, 3000)
        await checker.check(db, running.entries(), repeats_max=3 * UNRECORDED_MAX)
    assert not any(each.noise for each in daemons)


@pytest.mark.short
async def test_a_second_copy_is_started_by_mistake_again_and_again(
    database, db, start, receiving, until, delivered
):
    """The same settings, on the same machine, as of a unit that was enabled twice: it stands by, and is ended again."""
    owner = await start(database, **SETTINGS)
    async with receiving(db) as running:
        await emit(db, 2000)
        for n in range(1, 4):
            await until(lambda n=n: len(running.entries()) > n * 200)
            copy = await start(database, ready="standing by", **SETTINGS)
            copy.stop()
            assert await copy.ended() == 0
            assert not copy.said("shard.taken")
        await delivered(db, 2000)
        await checker.check(db, running.entries(), repeats_max=0)
    assert not owner.said("database.lost")
    assert not owner.noise
