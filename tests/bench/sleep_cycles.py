"""Figure 5, second half: 5,000 sleep cycles under hostile producers, the fallback poll off: none lost, none read late.

usage: sleep_cycles.py [--quick]      runs tests/component/event_log/test_doorbell.py's own attack for that many cycles

Four daemons on four servers share them: a cycle is mostly a wait, and one after the other they take half an hour.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from common import HERE, keep

TEST = "component/event_log/test_doorbell.py::test_hostile_producers_are_never_slept_through"
FOUND = re.compile(r"(\d+) cycles, (\d+) events, ms p50 ([\d.]+) p99 ([\d.]+) max (\d+)")


def main(*, quick: bool) -> None:
    cycles, daemons = (50, 1) if quick else (1250, 4)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-m",
        "",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        str(HERE.parent / TEST),
    ]
    runs = [
        subprocess.Popen(
            command,
            env=os.environ | {"PGHOOKD_TEST_SLEEP_CYCLES": str(cycles)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(daemons)
    ]
    told = [run.communicate()[0] for run in runs]
    found = [FOUND.search(text) for text in told]
    numbers = [[float(n) for n in match.groups()] for match in found if match is not None]
    if any(run.returncode for run in runs) or len(numbers) < daemons:
        sys.exit("\n".join(told))
    made, events, median, late, latest = zip(*numbers, strict=True)
    figures = {
        "daemons": daemons,
        "cycles": sum(made),
        "events": sum(events),
        "p50 ms": max(median),
        "p99 ms": max(late),
        "max ms": max(latest),
        "lost": 0,
    }
    keep("sleep_cycles", figures, quick=quick)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
