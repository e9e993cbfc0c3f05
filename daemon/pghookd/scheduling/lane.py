"""A lane: the deliveries of one endpoint in memory, and how many of its requests may be in flight, and when.

A lane has two queues: live traffic and retries go first; deliveries back from `parked` or `held` get one turn in four.
Its width grows by one for each success. It is halved for each failure, and when answers have become slow. A lane with
an open breaker holds only its probe. Once the breaker closes, parked deliveries go out at a pace. A paused lane starts
nothing until its pause ends, and a lane with a rate starts nothing before its rate allows it.

Never here: which lane is next (scheduling/turns), a clock, randomness.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from pghookd.model.delivery import Delivery, Endpoint
from pghookd.scheduling.breaker import Breaker, BreakerPolicy
from pghookd.scheduling.rate import Throttle
from pghookd.scheduling.slots import Holder, Member

LANE_QUEUE_MAX: Final = 1000  # deliveries queued for one lane, and as many late ones
QUEUE_MAX: Final = 20_000  # deliveries queued in all lanes
IDLE_LANES_MAX: Final = 10_000  # lanes without work that are kept, with their width
START_WIDTH: Final = 2.0  # requests in flight of a lane without a success yet
LIVE_TURNS: Final = 3  # live deliveries started for each late one, while both wait
GROWTHS_A_PROBE: Final = 3  # how many times a pace grows by e within `probe_s`
HANGS_MAX: Final = 3  # timeouts in a row of a lane without a success: low, since each holds a slot for long
HOST_HANGS_MAX: Final = 50  # timeouts of a host in a row, after which one timeout opens a lane's breaker
PAUSE_PARKS_S: Final = 5.0  # during a longer pause the lane's deliveries are parked
NEVER: Final = float("inf")
SMOOTHING: Final = 0.125  # weight of an answer in a lane's smoothed response time
SLOWER_S: Final = 0.05  # answers are slow if they take over twice the lane's best time plus this
EASE_EVERY_S: Final = 1.0  # a lane is halved for slow answers at most this often
EASE_LEAST: Final = 4  # and to no less than a quarter of its limit, so that a slow receiver is not starved
BEST_GROWS: Final = 1.25  # factor by which the best time then grows, so that an old best is forgotten
ORIGINS_MAX: Final = 4096  # cache entries, about 0.5 KB each
_AUTHORITY: Final = re.compile(r"//([^/?#]*)")


@dataclasses.dataclass(frozen=True, slots=True)
class LaneTerms:
    """The limits of the lanes.

    Attributes:
        concurrency: requests in flight.
        endpoint_concurrency: requests in flight of one endpoint that sets none of its own.
        queue_bytes_max: bytes of payloads in memory.
        policy: when breakers open.
        queue_max: deliveries queued in memory.
        idle_max: lanes without work that are kept.
    """

    concurrency: int
    endpoint_concurrency: int
    queue_bytes_max: int
    policy: BreakerPolicy = dataclasses.field(default_factory=BreakerPolicy)
    queue_max: int = QUEUE_MAX
    idle_max: int = IDLE_LANES_MAX


class LaneKey(NamedTuple):
    """Key of a lane: deliveries with the same key share one queue and one pace."""

    site_id: str
    endpoint_id: int


@dataclasses.dataclass(slots=True, eq=False)
class Site(Holder):
    """The lanes of one site. Sites take turns, and so do the lanes within a site.

    Attributes:
        turns: lanes that may start a request; while there are any, the site takes part in the turns of sites.
        queued: deliveries queued in its lanes, and in the lines in front of them.
        queued_bytes: bytes of their payloads.
        loads: lanes whose next payload must be loaded; while there are any, the site takes part in the turns of loads.
        loaded_bytes: cost of its large payloads in memory, bytes.
        load_wants: cost of the next payload of the first lane in `loads`, bytes; 0 if not known.
        period: the last period in which it had traffic (scheduling/turns).
    """

    turns: deque[Lane] = dataclasses.field(default_factory=deque)
    queued: int = 0
    queued_bytes: int = 0
    loads: deque[Lane] = dataclasses.field(default_factory=deque)
    loaded_bytes: int = 0
    load_wants: int = 0
    period: int = -1


@dataclasses.dataclass(slots=True, eq=False)
class Host(Holder):
    """The requests of all sites to one host and port.

    Attributes:
        hangs: timeouts in a row.
    """

    hangs: int = 0


def host_and_port(url: str) -> str:
    """Return `host:port` of a URL, lower case; the URL itself if it cannot be parsed. For counting requests only."""
    scheme, colon, rest = url.partition(":")
    authority = _AUTHORITY.match(rest)
    return url if authority is None or not colon else _counted_as(scheme, authority[1]) or url


@functools.lru_cache(maxsize=ORIGINS_MAX)
def _counted_as(scheme: str, authority: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{authority}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    return f"{parts.hostname}:{port}" if parts.hostname else ""


@dataclasses.dataclass(slots=True, eq=False)
class Lane(Member):
    """One endpoint's deliveries in memory.

    The turns keep `queue`, `late`, `unloaded`, `in_turn` and `rests_at` (scheduling/turns).

    Attributes:
        key: its site and endpoint.
        site: its site.
        host: the host and port of the endpoint's URL.
        endpoint: the endpoint, as last read.
        limit: maximum of requests in flight, from the endpoint or the settings.
        breaker: the endpoint's breaker.
        throttle: its rate, its pause, and its pace of catch-up.
        with_rows: all endpoints that may have parked rows, or held rows that may go out.
        width: how many requests may be in flight, as a float that grows and is halved.
        queue: live traffic and retries.
        late: late work: deliveries back from `parked` or `held`.
        unloaded: number of queued deliveries whose payload is large and not in memory.
        allowed: the width in whole requests.
        in_turn: True if it takes part in the turns, or waits for a share of slots or for a payload.
        rests_at: monotonic seconds at which it takes part again, while a pause, rate or pace holds it; NEVER if none.
        led: live deliveries started since the last late one.
        probe: the delivery queued or in flight as the probe of an open breaker; None if there is none.
        hangs: timeouts in a row while it is not `proved`.
        smooth_s: smoothed response time, seconds.
        best_s: best recent response time, seconds.
        eases_at: monotonic seconds from which slow answers may halve the lane again.
        prepared: the prepared parts of the endpoint's requests; None after the endpoint has changed.
    """

    site: Site
    host: Host
    key: LaneKey
    endpoint: Endpoint
    limit: int
    breaker: Breaker
    with_rows: AbstractSet[int]
    throttle: Throttle = dataclasses.field(default_factory=Throttle)
    queue: deque[Delivery] = dataclasses.field(default_factory=deque)
    late: deque[Delivery] = dataclasses.field(default_factory=deque)
    unloaded: int = 0
    width: float = START_WIDTH
    allowed: int = 0
    in_turn: bool = False
    rests_at: float = NEVER
    led: int = 0
    probe: Delivery | None = None
    hangs: int = 0
    smooth_s: float = 0.0
    best_s: float = NEVER
    eases_at: float = 0.0
    prepared: object | None = None

    def __post_init__(self) -> None:
        self.resize(self.width)
        self._apply_rate()

    # The endpoint -----------------------------------------------------------------------------------------------------

    def change(self, endpoint: Endpoint, host: Host, limit: int) -> None:
        """Apply a changed endpoint: probe at once if its breaker is open, and end a pause if its owner changed it."""
        by_owner = not _is_end_of_rotation(self.endpoint, endpoint)
        self.endpoint, self.host, self.prepared = endpoint, host, None
        self.set_limit(limit)
        if self.breaker.is_open:
            self.breaker.probe_now()
        if self.throttle.paused_until and by_owner:
            self._end_pause()
        self._apply_rate()

    def _apply_rate(self) -> None:
        options = self.endpoint.options
        self.throttle.set_rate(None if options is None else options.rate)

    def disable(self) -> None:
        """Take the endpoint for disabled, before its row is read again."""
        if self.endpoint.enabled:
            self.endpoint = dataclasses.replace(self.endpoint, enabled=False)

    def forget(self) -> None:
        """Take the endpoint for deleted: it is disabled, its breaker is closed and its pause has ended."""
        self.disable()
        self.breaker.close()
        self.throttle.end_pause()

    def keep(self, prepared: object) -> None:
        """Keep the prepared parts of the endpoint's requests until the endpoint changes."""
        self.prepared = prepared

    # The queues -------------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Deliveries in both queues."""
        return len(self.queue) + len(self.late)

    def next_queue(self, now: float) -> deque[Delivery] | None:
        """Return the queue to start the next delivery from, and count that start; None if it is too early."""
        throttle = self.throttle
        if throttle.opens_at() > now:
            return None
        queue = self._turn(now) if self.late else self.queue
        if queue is not None:
            throttle.started(now)
        return queue

    def _turn(self, now: float) -> deque[Delivery] | None:
        """Return the queue whose turn it is in a lane with late work; None if it is too early."""
        if self.queue and self.led < LIVE_TURNS:
            self.led += 1
            return self.queue
        pace = self.throttle.pace
        if pace is None or pace.not_before <= now:
            self.led = 0
            if pace is not None:
                pace.started(now)
            return self.late
        return self.queue or None

    def starts_at(self, now: float) -> float:
        """Return when a lane for which it is too early may start something, monotonic seconds."""
        at, pace = self.throttle.opens_at(), self.throttle.pace
        return at if at > now or pace is None else pace.not_before

    def next_unloaded(self) -> Delivery | None:
        """Return a delivery at the head of a queue whose large payload is not in memory; None if there is none."""
        for queue in (self.queue, self.late):
            if queue and queue[0].event.payload is None and queue[0].loaded is None:
                return queue[0]
        return None

    def waits_longer(self, patience_s: float, now: float) -> bool:
        """Return True if the head of a queue has waited for longer; late work with a pace does not count."""
        if self.queue and now - self.queue[0].since > patience_s:
            return True
        return bool(self.late) and self.throttle.pace is None and now - self.late[0].since > patience_s

    def is_stuck(self, patience_s: float, now: float) -> bool:
        """Return True if the lane itself holds up its deliveries: it may start no more, and answers too slowly."""
        if self.throttle.active and self.throttle.is_shut(now):
            return True
        if self.waits_for is not None:
            return self.waits_longer(patience_s, now)
        return self.in_flight >= self.allowed and (not self.proved or self.waits_longer(patience_s, now))

    # The width, and the breaker ---------------------------------------------------------------------------------------

    def resize(self, width: float) -> None:
        """Set how many requests it may have in flight, within its limit and never below one."""
        self.width = max(1.0, min(width, self.limit))
        self.allowed = int(self.width)

    def set_limit(self, limit: int) -> None:
        """Set the maximum of requests in flight."""
        self.limit = limit
        self.resize(self.width)

    def succeeded(self, delivery: Delivery, now: float, took_s: float, busy: bool) -> bool:
        """Record a 2xx, and grow by one unless answers have become slow; return True if this closed the breaker.

        Slow answers count against the receiver unless the daemon itself is `busy`.
        """
        self.proved, self.host.hangs = True, 0
        self.smooth_s = smooth_s = self.smooth_s + (took_s - self.smooth_s) * SMOOTHING
        if took_s < self.best_s:  # noqa: PLR1730 - min() costs more than all of this
            self.best_s = took_s
        if smooth_s > SLOWER_S and smooth_s > 2.0 * self.best_s + SLOWER_S and not busy:
            self._ease(now)
        elif self.allowed < self.limit:
            self.resize(self.width + 1)
        if delivery.late:
            self.throttle.grow()
        return bool(self.breaker.window) and self._weigh(delivery, now)

    def _ease(self, now: float) -> None:
        """Halve a lane whose answers have become slow; if it is narrow already, accept the slowness as its best."""
        if now < self.eases_at:
            return
        self.eases_at = now + max(EASE_EVERY_S, self.smooth_s / SMOOTHING)
        least = max(START_WIDTH, self.limit / EASE_LEAST)
        if self.width > least:
            self.resize(max(least, self.width / 2))
        else:
            self.best_s = min(self.smooth_s, max(self.best_s, SLOWER_S) * BEST_GROWS)

    def _weigh(self, delivery: Delivery, now: float) -> bool:
        """Count a success of an endpoint with recent failures; return True if it closed the breaker."""
        if not self.breaker.is_open:
            self.breaker.succeeded()
            return False
        self.proved = False
        self.resize(START_WIDTH)
        if not self.release_probe(delivery):  # sent before it opened
            return False
        self.breaker.close()
        self.proved = True
        if self.has_rows:
            self.catch_up(now)
        return True

    def failed(self, delivery: Delivery, now: float, random01: float, *, counts: bool, hung: bool) -> bool:
        """Record a failed request, and halve the lane; return True if this opened the breaker (see Lanes.failed)."""
        self.resize(self.width / 2)
        if self.breaker.is_open:
            if self.release_probe(delivery):
                again = self.breaker.probe_failed if counts else self.breaker.probe_proved_nothing
                again(now, random01)
            return False
        if not counts:
            return False
        if self.throttle.pace is not None:
            self.throttle.pace.halve(now)
        if not self.breaker.failed(now, random01, too_often=self._hangs_too_often(hung=hung)):
            return False
        self.proved, self.hangs = False, 0
        self.throttle.end_pace()
        self.resize(START_WIDTH)
        return True

    def _hangs_too_often(self, *, hung: bool) -> bool:
        """Count timeouts; return True if they must open the breaker, whatever the share of failures is."""
        host = self.host
        host.hangs = host.hangs + 1 if hung else 0
        self.hangs = self.hangs + 1 if hung and not self.proved else 0
        return self.hangs >= HANGS_MAX or host.hangs > HOST_HANGS_MAX

    def accept_probe(self, delivery: Delivery, now: float) -> bool:
        """Return True if a delivery becomes the probe: one is due, and if the endpoint has parked rows, it is late."""
        if self.probe is not None or now < max(self.breaker.probe_at, self.throttle.paused_until):
            return False
        if not delivery.late and self.has_rows:
            return False
        self.probe = delivery
        return True

    def release_probe(self, delivery: Delivery) -> bool:
        """Return True if a delivery was the probe; from now on another one may be."""
        was_probe = delivery is self.probe
        if was_probe:
            self.probe = None
        return was_probe

    # Pauses, and late work --------------------------------------------------------------------------------------------

    def is_paused(self, now: float) -> bool:
        """Return True if it is paused; end a pause that is over."""
        if 0 < self.throttle.paused_until <= now:
            self._end_pause()
        return self.throttle.paused_until > 0

    def _end_pause(self) -> None:
        """End the pause; if the receiver asked for it, the parked rows go out at a pace."""
        if self.throttle.end_pause() and self.has_rows:
            self.catch_up(0.0)

    def catch_up(self, now: float) -> None:
        """Limit late work to a pace from now on, unless the breaker is open: its endpoint may send again."""
        if not self.breaker.is_open:
            self.throttle.ramp_up(now, self.breaker.policy.probe_s / GROWTHS_A_PROBE)

    @property
    def has_rows(self) -> bool:
        """Return True if the endpoint may have rows that are parked, or held and may go out."""
        return self.key.endpoint_id in self.with_rows


class KnownLanes:
    """The lanes that are kept: all with work, an open breaker or a pause, and the latest of the others.

    Attributes:
        by_endpoint: lanes by endpoint_id.
    """

    def __init__(self, idle_max: int) -> None:
        self.by_endpoint: dict[int, Lane] = {}
        self._lanes: dict[LaneKey, Lane] = {}
        self._idle: OrderedDict[Lane, None] = OrderedDict()
        self._idle_max = idle_max

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def resize(self, idle_max: int) -> None:
        """Set how many idle lanes are kept."""
        self._idle_max = idle_max

    def get(self, key: LaneKey) -> Lane | None:
        """Return a lane; None if it is not kept."""
        return self._lanes.get(key)

    def busy(self) -> Iterator[Lane]:
        """Iterate over the lanes with deliveries queued or in flight."""
        return (lane for lane in list(self._lanes.values()) if lane.queue or lane.late or lane.in_flight)

    def enter(self, lane: Lane) -> None:
        """Keep a lane that gets work; it is not idle now, and may have been evicted while it was."""
        self._idle.pop(lane, None)
        if self.by_endpoint.get(lane.endpoint.endpoint_id) is not lane:
            self._lanes[lane.key] = self.by_endpoint[lane.key.endpoint_id] = lane

    def leave(self, lane: Lane) -> None:
        """Mark a lane without work as idle, so that it can be evicted; an open breaker or a pause must be kept."""
        if not lane.breaker.is_open and not lane.throttle.paused_until:
            self._idle[lane] = None
            while len(self._idle) > self._idle_max:
                self._evict()

    def _evict(self) -> None:
        """Forget the lane that has been idle for longest, unless a younger one of its endpoint has its place."""
        lane, _ = self._idle.popitem(last=False)
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
        if self.by_endpoint.get(lane.key.endpoint_id) is lane:
            del self.by_endpoint[lane.key.endpoint_id]


def _is_end_of_rotation(before: Endpoint, after: Endpoint) -> bool:
    """Return True if the only change is that the previous secret has ended."""
    old, new = before.options, after.options
    if old is None or old.previous_secret is None:
        return False
    ended = dataclasses.replace(old, previous_secret=None, previous_until_s=0.0)
    return dataclasses.replace(before, options=new) == after and new in {None, ended}
