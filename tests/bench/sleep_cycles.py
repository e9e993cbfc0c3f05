"""Figure 5, second half: 5,000 sleep cycles under hostile producers, the fallback poll off: none lost, none read late.

usage: sleep_cycles.py [--quick]      runs tests/edge/test_doorbell.py's own attack for that many cycles
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from common import HERE, keep

TEST = "edge/test_doorbell.py::test_hostile_producers_are_never_slept_through"
FOUND = re.compile(r"(\d+) cycles, (\d+) events, ms p50 ([\d.]+) p99 ([\d.]+) max (\d+)")


def main(*, quick: bool) -> None:
    cycles = "50" if quick else "5000"
    command = [sys.executable, "-m", "pytest", "-q", "-s", str(HERE.parent / TEST)]
    run = subprocess.run(
        command,
        check=False,
        env=os.environ | {"PGHOOKD_TEST_SLEEP_CYCLES": cycles},
        capture_output=True,
        text=True,
    )
    found = FOUND.search(run.stdout)
    if run.returncode or found is None:
        sys.exit(run.stdout + run.stderr)
    names = ("cycles", "events", "p50 ms", "p99 ms", "max ms")
    keep("sleep_cycles", dict(zip(names, map(float, found.groups()), strict=True)) | {"lost": 0}, quick=quick)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
