"""Many random histories in virtual time; none may break what must hold, and every sabotaged daemon must.

A few seconds of them belong to the tests; PGHOOKD_TEST_SCHEDULES=5000 `pytest tests/sim` tries more, and
PGHOOKD_TEST_SEED=n one of them again.
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sabotage import SABOTAGES
from world import Broken, World

SCHEDULES = int(os.environ.get("PGHOOKD_TEST_SCHEDULES", "100"))
SEED = os.environ.get("PGHOOKD_TEST_SEED")
CATCH_WITHIN = 400  # histories
LONG_S = 3600


def _seeds():
    """Yield the seeds to be tried: one that was asked for, or as many as were."""
    if SEED is not None:
        return [int(SEED)]
    start = random.randrange(10**9)
    return range(start, start + SCHEDULES)


@pytest.mark.timeout(LONG_S)
def test_no_history_breaks_what_must_hold():
    requests = lives = 0
    for seed in _seeds():
        world = World(seed)
        world.run()
        requests += len(world.seen)
        lives += world.life
    print(f"{requests} requests in {lives} lives")
    assert requests


def test_the_same_seed_is_the_same_history():
    histories = []
    for _ in range(2):
        world = World(42)
        world.run()
        histories.append((world.seen, world.ends))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotaged_daemon_is_caught(name):
    make, caught_by = SABOTAGES[name]
    for seed in range(CATCH_WITHIN):
        try:
            World(seed, make).run()
        except Broken as error:
            print(f"caught at seed {seed}: {error}")
            assert re.search(caught_by, str(error))  # noqa: PT017 - the first that breaks, whichever it is
            return
    pytest.fail(f"{CATCH_WITHIN} histories, and nothing was noticed")
