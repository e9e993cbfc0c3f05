"""The values that everything else speaks of: endpoint, event, delivery, attempt, outcome.

One word per thing, the same in SQL, Python, logs and README. Nothing here decides or acts.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from typing import Final, TypeAlias

from pghookd.model.endpoint_options import EndpointOptions
from pghookd.model.event_options import EventOptions

EVENT_TYPES = (
    "order_created",
    "order_updated",
    "product_created",
    "product_updated",
    "form_submitted",
    "contact_updated",
)


DAY_IDS: Final = 4_294_967_296  # event ids of a day, and of a partition
# What begins the error of an attempt that got no token: the receiver was not asked.
OAUTH2: Final = "oauth2: "
_RESERVED: Final = "webhook_"  # types that begin so are ours, and not part of `*`


class Outcome(enum.StrEnum):
    """What one attempt came to. A closed set (column `attempts.outcome`)."""

    DELIVERED = "delivered"  # a 2xx head was received; the body cannot change it
    REFUSED = "refused"  # any other answer
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    BLOCKED = "blocked"  # the destination is not allowed
    FAILED = "failed"  # our own fault


class State(enum.StrEnum):
    """Where an undelivered delivery stands. A closed set (column `backlog.state`, and `dead`)."""

    WAITING = "waiting"
    PARKED = "parked"
    HELD = "held"


class Reason(enum.StrEnum):
    """Why a delivery is where it is (columns `backlog.reason`, `dead.reason`)."""

    # waiting
    RETRY = "retry"
    QUEUED = "queued"
    ADOPTED = "adopted"
    DELIVER_AFTER = "deliver_after"
    REPLAY = "replay"
    # parked
    LANE_FULL = "lane_full"
    BREAKER_OPEN = "breaker_open"
    PAUSED = "paused"  # its receiver said when to come again
    FILTER_SLOW = "filter_slow"
    ORDERING = "ordering"  # an earlier one of its ordering_key is unsettled
    # held
    DISABLED = "disabled"
    # dead
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    TOO_OLD = "too_old"
    TOO_LARGE = "too_large"
    BLOCKED = "blocked"
    ABORTED = "aborted"
    INVALID = "invalid"
    NO_ENDPOINT = "no_endpoint"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    DROPPED = "dropped"


class DisabledReason(enum.StrEnum):
    """Who switched an endpoint off (column `endpoints.disabled_reason`)."""

    OWNER = "owner"
    OPERATOR = "operator"
    GONE = "gone"
    FAILING = "failing"
    RECEIVER = "receiver"


def reserved_from(event_type: str) -> int:
    """Return the least length of a prefix that may take a type: one of a reserved type must be reserved itself."""
    return len(_RESERVED) if event_type.startswith(_RESERVED) else 0


def _begins(event_type: str, prefix: str) -> bool:
    """Return True if a prefix takes a type."""
    return len(prefix) >= reserved_from(event_type) and event_type.startswith(prefix)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of `endpoints`, as read after the page that needed it."""

    endpoint_id: int
    site_id: str
    shard: int
    url: str
    event_types: tuple[str, ...]
    enabled: bool
    from_event_id: int
    secret: str | None = dataclasses.field(default=None, repr=False)
    source: str | None = None  # sites.url, sent as x-webhook-source
    concurrency: int | None = None  # null means delivery.endpoint_concurrency
    timeout_s: float | None = None  # null means delivery.timeout_s
    options: EndpointOptions | None = None  # what is seldom set; null: nothing of it

    def takes(self, event_type: str) -> bool:
        """Whether this endpoint asked for the type; `order_*` is all that begin so, `*` all but the reserved ones."""
        return any(
            wanted == event_type or (wanted.endswith("*") and _begins(event_type, wanted[:-1]))
            for wanted in self.event_types
        )


@dataclasses.dataclass(slots=True, eq=False)
class Event:
    """One row of `events`. Shared by all its deliveries; not frozen because thousands are made a second."""

    event_id: int
    site_id: str
    type: str
    created_at_us: int  # microseconds since 1970, UTC
    payload: bytes | None  # the producer's own JSON text; None: large, loaded when it is sent
    endpoint_id: int | None = None  # only to this one
    options: EventOptions | None = None  # what is seldom set; None: nothing of it
    webhook_id: str = ""  # made with the body
    triggered_at: str = ""  # made with the body
    body: bytes | None = None  # the envelope, made once for all deliveries of the event


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class Newest:
    """The newest event known of one `supersede_key` at one endpoint, held by its deliveries (event_log/supersede).

    Attributes:
        event_id: of the newest one; 0: none is known.
        before_us: its deliver_before, while it has not been sent, microseconds since 1970; None: it has no end.
    """

    event_id: int = 0
    before_us: int | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Line:
    """The deliveries of one ordering_key at one `ordered` endpoint, as far as memory knows (scheduling/ordering).

    Attributes:
        name: the ordering_key; empty: events that have none.
        head: in the endpoint's lane, or given up and not recorded yet.
        ahead: wait for it in memory, oldest first.
        led_at: monotonic seconds, when the head became it.
        behind: rows of it are in `backlog`, perhaps, that are not in memory.
        blocked: the first of those waits for its time.
        sure: nothing that was in memory has become a row since its rows were last looked at.
        unwritten: events whose rows are not durable yet.
        returning: those of them that were in memory, so that later ones may have rows already.
    """

    name: str
    head: Delivery | None = None
    ahead: deque[Delivery] = dataclasses.field(default_factory=deque)
    led_at: float = 0.0
    behind: bool = False
    blocked: bool = False
    sure: bool = False
    unwritten: set[int] = dataclasses.field(default_factory=set)
    returning: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a large payload came to.

    Attributes:
        payload: None if the delivery is to be given up.
        died: why, then.
        cost: what the payload counts for in the bytes that sites share (scheduling/payload_budget).
    """

    payload: bytes | None
    died: Reason | None = None
    cost: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one endpoint, while it is in memory."""

    event: Event
    endpoint_id: int
    attempts: int  # attempts recorded so far; the next one is attempts + 1
    since: float  # monotonic seconds at which it came into memory
    ticket: object | None = (
        None  # what of the log waits for it (event_log/position); None: it has a row of its own
    )
    in_backlog: bool = False
    age_from_us: int = 0  # what age_max_s counts from; microseconds since 1970
    late: bool = False  # comes back from `parked` or `held`, or is replayed: live traffic goes first
    attempts_before: int = 0  # of `attempts`, those before a replay: the schedule counts from there
    newest: Newest | None = None  # of its supersede_key; None: it has none
    line: Line | None = None  # of an endpoint that is ordered
    loaded: Loaded | None = None  # where the event's payload is large
    flight: object | None = None  # its slot while it is in flight (scheduling/slots)


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A response head was received.

    Attributes:
        status: as sent by the receiver.
        body: at most `response_bytes_max` bytes, possibly cut.
        retry_after: the raw header's value, if present.
        control: the raw value of `webhook-delivery`, lower case, if present.
        location: the raw value of `Location`, if present.
    """

    status: int
    body: bytes = b""
    retry_after: str | None = None
    control: str | None = None
    location: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """No response: what stood in the way.

    Attributes:
        outcome: TIMEOUT, UNREACHABLE, BLOCKED or FAILED; REFUSED by a token endpoint, where the receiver was not asked.
        error: a constant name, or `name: detail` (NAMES: timeout connect, response; unreachable dns, refused,
            reset, stale_connection, ...; blocked url, scheme, port, ...).
    """

    outcome: Outcome
    error: str


Answer: TypeAlias = Reply | Fault
