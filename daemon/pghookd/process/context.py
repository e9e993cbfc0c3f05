"""The context of a loop; tests replace it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """The logger, clocks and randomness of a loop.

    Attributes:
        logger: the log.
        monotonic: returns seconds that never go back.
        wall_us: returns microseconds since 1970, UTC.
        random01: returns a number from 0 to 1, 1 excluded.
    """

    logger: FilteringBoundLogger
    monotonic: Callable[[], float]
    wall_us: Callable[[], int]
    random01: Callable[[], float]
