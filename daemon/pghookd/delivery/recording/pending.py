"""Writes that are not durable yet: outcomes first, then everything else, and what is set aside for now.

An outcome is what a request came to; until it is durable, a crash repeats the request. Everything else (a row for a
delivery that was not sent) costs nothing when it waits. So outcomes go first, and only they count for the gate.

A write whose row somebody has locked, or which Postgres refuses, is set aside by its endpoint and tried again later.
Later writes about the same delivery stay behind it. Nothing here decides when; there is no clock and no I/O.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from pghookd.model.delivery import Delivery
from pghookd.model.outcome import AttemptWrite, Write

OTHERS_LEAST: Final = 50  # rows of a batch that outcomes leave to other writes, so that these never starve
BATCH_BYTES_MAX: Final = 100_000  # of responses in a batch: a statement that a socket takes at once
OUTCOMES_ASIDE_MAX: Final = 2000  # requests that a crash would repeat; beyond this no request starts
ASIDE_MAX: Final = 20_000  # writes of any kind set aside, as many as deliveries fit in memory


class DelayedOutcomes(enum.StrEnum):
    """Why a write is set aside."""

    LOCKED = "locked"  # somebody holds its row, or the table
    REFUSED = "refused"  # Postgres rejects this row, and no other


@dataclasses.dataclass(slots=True, eq=False)
class SetAside:
    """What is set aside of one endpoint.

    Attributes:
        reason: of the latest try.
        again_at: monotonic seconds from which it is tried again.
        writes: in the order in which they came.
        outcomes: how many of them are outcomes.
    """

    reason: DelayedOutcomes
    again_at: float
    writes: list[Write] = dataclasses.field(default_factory=list)
    outcomes: int = 0


class Pending:
    """Two queues, and what is set aside.

    Attributes:
        others_rest: other writes wait, since a table they need is locked.
        aside: writes that are set aside.
        outcomes_aside: how many of them are outcomes.
    """

    def __init__(self) -> None:
        self._outcomes: list[AttemptWrite] = []
        self._put_at: list[float] = []  # when each of them was put
        self._others: dict[int, tuple[Write, float]] = {}  # by delivery: a later word replaces an earlier one
        self._aside: dict[int, SetAside] = {}  # by endpoint
        self._stuck: set[int] = set()  # deliveries that have something set aside
        self.others_rest = False
        self.aside = 0
        self.outcomes_aside = 0

    # In ---------------------------------------------------------------------------------------------------------------

    def put(self, write: Write, now: float) -> None:
        """Take a write; what was said earlier of the same delivery stays before it, or is replaced."""
        delivery = write.delivery
        if self._stuck and id(delivery) in self._stuck:
            self._add_aside(self._aside[delivery.endpoint_id], write)
        elif isinstance(write, AttemptWrite):
            if self._others:
                self._others.pop(id(delivery), None)
            self._outcomes.append(write)
            self._put_at.append(now)
        else:
            self._others[id(delivery)] = (write, now)

    def put_back(self, writes: Iterable[Write], now: float) -> None:
        """Put other writes back in front of their queue, unless something newer is known of their deliveries."""
        front = {id(write.delivery): (write, now) for write in writes}
        self._others = {**front, **self._others}

    # Out --------------------------------------------------------------------------------------------------------------

    def take(self, most: int) -> list[Write]:
        """Take the next batch: outcomes, then others, at most so many rows and BATCH_BYTES_MAX of responses."""
        others = 0 if self.others_rest else len(self._others)
        count = self._fitting(most - min(others, OTHERS_LEAST, most // 2))
        taken: list[Write] = [*self._outcomes[:count]]
        del self._outcomes[:count], self._put_at[:count]
        keys = list(islice(self._others, min(others, most - count)))
        taken += [self._others.pop(key)[0] for key in keys]
        return taken

    def _fitting(self, most: int) -> int:
        """Return how many outcomes fit into a batch: at least one, where there is one."""
        size = 0
        for number, write in enumerate(islice(self._outcomes, most)):
            if write.response is not None:
                size += len(write.response)
                if size > BATCH_BYTES_MAX and number:
                    return number
        return min(most, len(self._outcomes))

    # How much ---------------------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> int:
        """Outcomes that wait for a batch."""
        return len(self._outcomes)

    @property
    def others(self) -> int:
        """Other writes that wait for a batch."""
        return len(self._others)

    @property
    def takeable(self) -> int:
        """Writes that the next batches may take."""
        return len(self._outcomes) + (0 if self.others_rest else len(self._others))

    @property
    def oldest_outcome_at(self) -> float | None:
        """When the oldest outcome was put, or None if there is none."""
        return self._put_at[0] if self._put_at else None

    @property
    def oldest_at(self) -> float | None:
        """When the oldest write was put, or None if there is none; what is set aside does not count."""
        first = next(iter(self._others.values()), None)
        times = [*self._put_at[:1], *(() if first is None else first[1:])]
        return min(times, default=None)

    def deliveries(self) -> Iterator[Delivery]:
        """Yield the deliveries of which something is still to be written."""
        yield from (write.delivery for write in self._outcomes)
        yield from (write.delivery for write, _ in self._others.values())
        yield from (write.delivery for entry in self._aside.values() for write in entry.writes)

    # Set aside --------------------------------------------------------------------------------------------------------

    def set_aside(self, write: Write, reason: DelayedOutcomes, again_at: float) -> bool:
        """Set a write aside behind what is set aside of its endpoint; return True if it is the endpoint's first."""
        endpoint_id = write.delivery.endpoint_id
        entry = self._aside.get(endpoint_id)
        if new := entry is None:
            entry = self._aside[endpoint_id] = SetAside(reason, again_at)
        entry.reason, entry.again_at = reason, again_at
        self._add_aside(entry, write)
        return new

    def _add_aside(self, entry: SetAside, write: Write) -> None:
        is_outcome = isinstance(write, AttemptWrite)
        entry.writes.append(write)
        entry.outcomes += is_outcome
        self.aside += 1
        self.outcomes_aside += is_outcome
        self._stuck.add(id(write.delivery))

    def ready(self, now: float, most: int) -> list[int]:
        """Return up to so many endpoints whose writes may be tried again, those tried longest ago first."""
        return list(islice((i for i, entry in self._aside.items() if entry.again_at <= now), most))

    def retry(self, endpoint_id: int, most: int) -> list[Write]:
        """Return the oldest writes set aside of an endpoint; they stay there until `retried` is called."""
        return self._aside[endpoint_id].writes[:most]

    def retried(
        self, endpoint_id: int, tried: int, stay: Iterable[Write], reason: DelayedOutcomes, again_at: float
    ) -> bool:
        """Keep what could not be written of the oldest `tried` writes; return True if nothing is left.

        The endpoint goes to the end of the turns.
        """
        before = self._aside.pop(endpoint_id)
        self.aside -= len(before.writes)
        self.outcomes_aside -= before.outcomes
        self._stuck.difference_update(id(write.delivery) for write in before.writes)
        for write in (*stay, *before.writes[tried:]):
            self.set_aside(write, reason, again_at)
        return endpoint_id not in self._aside

    def is_aside(self, endpoint_id: int) -> bool:
        """Return True if an outcome of the endpoint is set aside: meanwhile it is sent nothing."""
        entry = self._aside.get(endpoint_id)
        return entry is not None and entry.outcomes > 0

    @property
    def endpoints_aside(self) -> int:
        """Endpoints that have something set aside."""
        return len(self._aside)

    @property
    def is_full(self) -> bool:
        """Return True if no more may be set aside, so that no request may start."""
        return self.outcomes_aside >= OUTCOMES_ASIDE_MAX or self.aside >= ASIDE_MAX
