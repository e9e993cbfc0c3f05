"""The demo's view: counts per endpoint and the last requests, or plain lines without a terminal.

Never here: actions. The demo reports each event to the tally, and the view shows the tally.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pghookd.cli.devtools.receiver import ReceivedRequest

LATENCIES_MAX: Final = 1000  # most recent latencies of each endpoint
EARLY_MAX: Final = 10_000
LAST_SHOWN: Final = 8
MAILS_SHOWN: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Hook:
    """One endpoint of the demo."""

    endpoint_id: int
    site_id: str
    path: str
    event_types: tuple[str, ...]

    def takes(self, event_type: str) -> bool:
        """Return True if the endpoint is subscribed to the type."""
        return "*" in self.event_types or event_type in self.event_types


@dataclasses.dataclass(frozen=True, slots=True)
class ShownMail:
    """A mail to an owner, as the demo's mail server saved it.

    Attributes:
        at: local time, HH:MM:SS.
        recipient: the recipient's address.
        subject: the decoded subject.
        file: the file to open in a browser.
    """

    at: str
    recipient: str
    subject: str
    file: str


@dataclasses.dataclass(slots=True)
class Counts:
    """The counts of one endpoint."""

    inserted: int = 0
    delivered: int = 0
    retried: int = 0
    refused: int = 0
    latencies_us: collections.deque[int] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=LATENCIES_MAX)
    )


class Tally:
    """Counts events and deliveries: an event is expected at each endpoint that takes its type."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self.hooks = {hook.path: hook for hook in hooks}
        self.counts = {path: Counts() for path in self.hooks}
        self.pending: dict[tuple[int, str], int] = {}  # (event_id, path) -> committed at, microseconds
        self.last: collections.deque[ReceivedRequest] = collections.deque(maxlen=LAST_SHOWN)
        self.mails: collections.deque[ShownMail] = collections.deque(maxlen=MAILS_SHOWN)
        self.expected = 0
        self.delivered = 0  # expected deliveries that have arrived
        self.refuted = 0
        self.events = 0
        self._early: dict[
            tuple[int, str], ReceivedRequest
        ] = {}  # arrived before the INSERT's answer came back

    def insert(self, event_id: int, site_id: str, event_type: str, committed_at_us: int) -> None:
        """Record an event whose INSERT has returned."""
        self.events += 1
        for hook in self.hooks.values():
            if hook.site_id == site_id and hook.takes(event_type):
                self.expected += 1
                self.counts[hook.path].inserted += 1
                self.pending[event_id, hook.path] = committed_at_us
                early = self._early.pop((event_id, hook.path), None)
                if early is not None:
                    self._deliver(early)

    def arrive(self, arrival: ReceivedRequest) -> None:
        """Record a request and its answer."""
        self.last.append(arrival)
        counts = self.counts.get(arrival.path)
        if arrival.refuted is not None:
            self.refuted += 1
        if counts is None:
            return
        counts.retried += arrival.attempt > 1
        if arrival.status != 200:  # noqa: PLR2004 - OK
            counts.refused += 1
            return
        counts.delivered += 1
        self._deliver(arrival)

    def _deliver(self, arrival: ReceivedRequest) -> None:
        key = arrival.event_id, arrival.path
        committed_at_us = self.pending.pop(key, None)
        if committed_at_us is None:  # not sent by the demo, or its INSERT has not returned yet
            self._early[key] = arrival
            if len(self._early) > EARLY_MAX:
                del self._early[next(iter(self._early))]
            return
        self.delivered += 1
        if arrival.attempt == 1:
            self.counts[arrival.path].latencies_us.append(max(0, arrival.at_us - committed_at_us))

    @property
    def retried(self) -> int:
        """The number of requests that were not the first of their delivery."""
        return sum(counts.retried for counts in self.counts.values())

    def percentile_ms(self, share: float, path: str | None = None) -> float | None:
        """Return a percentile of the time from commit to arrival of first attempts; None if nothing arrived yet."""
        chosen = self.counts.values() if path is None else (self.counts[path],)
        times = sorted(time for counts in chosen for time in counts.latencies_us)
        return times[min(int(len(times) * share), len(times) - 1)] / 1000 if times else None


def line(tally: Tally) -> str:
    """Return the tally as one plain line."""
    return (
        f"inserted {tally.events}  deliveries {tally.delivered} of {tally.expected}  retried {tally.retried}"
        f"  waiting {len(tally.pending)}"
        f"  p50 {_ms(tally.percentile_ms(0.5))} ms  p99 {_ms(tally.percentile_ms(0.99))} ms"
    )


def table(tally: Tally) -> RenderableType:
    """Return the tally as a table, with the last requests and the last mails to owners below."""
    grid = Table(title="from INSERT to verified POST", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.title_justify, grid.title_style = "left", "bold"
    grid.add_column("endpoint", no_wrap=True)
    for name in ("inserted", "delivered", "refused", "retried", "waiting", "p50 ms", "p99 ms"):
        grid.add_column(name, justify="right", no_wrap=True)
    waiting = collections.Counter(path for _event_id, path in tally.pending)
    for path, counts in tally.counts.items():
        numbers = (counts.inserted, counts.delivered, counts.refused, counts.retried, waiting[path])
        times = (tally.percentile_ms(share, path) for share in (0.5, 0.99))
        grid.add_row(path, *map(str, numbers), *map(_ms, times))
    return Group(grid, *(_arrival(arrival) for arrival in tally.last), *map(_mail, tally.mails))


def console() -> Console:
    """Return the console for all output of the demo; rich honours NO_COLOR and pipes."""
    return Console(highlight=False, markup=False, emoji=False)


def _arrival(arrival: ReceivedRequest) -> Text:
    style, word = ("green", "verified") if arrival.refuted is None else ("red", arrival.refuted)
    if arrival.refuted is None and arrival.status != 200:  # noqa: PLR2004 - OK
        style, word = "yellow", "refused"  # refused on purpose, although the signature was right
    return Text.assemble(  # fits into 80 columns
        f"{arrival.webhook_id} {arrival.event_type:<15} {arrival.path:<13} #{arrival.attempt} ",
        (f"{arrival.status} {word}", style),
        no_wrap=True,
        overflow="ellipsis",
    )


def mail_line(mail: ShownMail) -> str:
    """Return a mail as one plain line."""
    return f"{mail.at} email to {mail.recipient}: {mail.subject} ({mail.file})"


def _mail(mail: ShownMail) -> Text:
    return Text.assemble(  # fits into 80 columns
        f"{mail.at} email to {mail.recipient}, {mail.file}\n    ",
        (mail.subject, "cyan"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
