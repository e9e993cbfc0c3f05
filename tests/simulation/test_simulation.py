"""Many random histories in virtual time; none may break an invariant, and every sabotaged daemon must.

A few seconds of them belong to the tests. `PGHOOKD_TEST_SCHEDULES=5000 pytest tests/simulation` lives 5,000 and a
fifth as many of mails, in under two minutes on two processors; any number may be asked for. One that breaks something
says its seed: `PGHOOKD_TEST_SEED=n pytest tests/simulation` lives it again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from concurrent.futures import ProcessPoolExecutor

import pytest
from mail_world import MailWorld, mail_histories
from sabotage import FIRST_SEED, INSTANCES, MAIL_SABOTAGES, SABOTAGES
from world import BrokenError, World, histories

SCHEDULES = int(os.environ.get("PGHOOKD_TEST_SCHEDULES", "100"))
SEED = os.environ.get("PGHOOKD_TEST_SEED")
CATCH_WITHIN = 1200  # histories
CHUNK = 100
LONG_S = 3600


def _seeds():
    """Yield the seeds to be tried: one that was asked for, or as many as were."""
    if SEED is not None:
        return [int(SEED)]
    start = random.randrange(10**9)
    return range(start, start + SCHEDULES)


def _live(several, seeds):
    """Live histories in as many processes as there are processors; return the sums of what they count."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if len(chunks) == 1:
        counts = [several(seeds)]
    else:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            counts = list(pool.map(several, chunks))
    found, lives = map(sum, zip(*counts, strict=True))
    print(f"{len(seeds)} histories from seed {seeds[0]}: {found} requests or mails in {lives} lives")
    return found


def _caught(first, make_world, caught_by):
    for seed in range(first, first + CATCH_WITHIN):
        try:
            make_world(seed).run()
        except BrokenError as error:
            print(f"caught at seed {seed}: {error}")
            assert re.search(caught_by, str(error))  # noqa: PT017 - the first that breaks, whichever it is
            return
    pytest.fail(f"{CATCH_WITHIN} histories, and nothing was noticed")


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
def test_no_history_breaks_an_invariant():
    assert _live(histories, _seeds())


@pytest.mark.timeout(LONG_S)
def test_no_history_of_mails_breaks_an_invariant():
    seeds = _seeds()
    assert _live(mail_histories, seeds[: max(20, len(seeds) // 5)])


def test_the_same_seed_is_the_same_history():
    histories = []
    for _ in range(2):
        world = World(42)
        world.run()
        histories.append((world.seen, world.ends))
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotaged_daemon_is_caught(name):
    make, caught_by = SABOTAGES[name]
    count = INSTANCES.get(name, 1)
    _caught(FIRST_SEED.get(name, 0), lambda seed: World(seed, make, count), caught_by)


@pytest.mark.parametrize("name", MAIL_SABOTAGES)
def test_a_sabotaged_mailer_is_caught(name):
    make, caught_by = MAIL_SABOTAGES[name]
    _caught(0, lambda seed: MailWorld(seed, make), caught_by)
