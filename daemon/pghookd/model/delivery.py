"""The values that all rooms share: endpoint, event, delivery, attempt, outcome.

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
# Prefix of an attempt's error if no token was obtained: no request went to the receiver.
OAUTH2: Final = "oauth2: "
_RESERVED: Final = "webhook_"  # prefix of pghookd's own types, which `*` does not include


class Outcome(enum.StrEnum):
    """The result of one attempt. A closed set (column `attempts.outcome`)."""

    DELIVERED = "delivered"  # a 2xx head was received; the body cannot change the outcome
    REFUSED = "refused"  # any other answer
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    BLOCKED = "blocked"  # the destination is not allowed
    FAILED = "failed"  # our own fault


class State(enum.StrEnum):
    """The state of a delivery that has a row in `backlog`. A closed set (column `backlog.state`)."""

    WAITING = "waiting"
    PARKED = "parked"
    HELD = "held"


class Reason(enum.StrEnum):
    """Why a delivery is in its state (columns `backlog.reason`, `dead.reason`); model/delivery_states says when."""

    RETRY = "retry"
    QUEUED = "queued"
    ADOPTED = "adopted"
    DELIVER_AFTER = "deliver_after"
    REPLAY = "replay"
    LANE_FULL = "lane_full"
    BREAKER_OPEN = "breaker_open"
    PAUSED = "paused"
    FILTER_SLOW = "filter_slow"
    ORDERING = "ordering"
    DISABLED = "disabled"
    QUARANTINED = "quarantined"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    TOO_OLD = "too_old"
    TOO_LARGE = "too_large"
    BLOCKED = "blocked"
    ABORTED = "aborted"
    INVALID = "invalid"
    NO_ENDPOINT = "no_endpoint"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    DROPPED = "dropped"


class AttemptCause(enum.StrEnum):
    """Why an attempt was made. A closed set (column `attempts.cause`)."""

    LIVE = "live"  # the first attempt at an event
    RETRY = "retry"  # an earlier attempt has failed
    REPLAY = "replay"  # the first attempt after an operator replayed the delivery
    TEST = "test"  # the event is for one endpoint alone
    PROBE = "probe"  # the endpoint's breaker was open
    RECOVERY = "recovery"  # the first attempt, but an earlier run of the daemon may have made one


class DisabledReason(enum.StrEnum):
    """Why an endpoint was disabled (column `endpoints.disabled_reason`)."""

    OWNER = "owner"
    OPERATOR = "operator"
    GONE = "gone"
    FAILING = "failing"
    RECEIVER = "receiver"


def reserved_from(event_type: str) -> int:
    """Return the minimum length of a prefix that matches a type; for a reserved type, that of the reserved prefix."""
    return len(_RESERVED) if event_type.startswith(_RESERVED) else 0


def _begins(event_type: str, prefix: str) -> bool:
    """Return True if a prefix matches a type."""
    return len(prefix) >= reserved_from(event_type) and event_type.startswith(prefix)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of `endpoints`, read after the page of events that needed it."""

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
    options: EndpointOptions | None = None  # rarely used options; None if none is set
    revision: int = dataclasses.field(
        default=1, compare=False
    )  # requests may be the same in several revisions

    def takes(self, event_type: str) -> bool:
        """Return True if it subscribes to the type; `order_*` matches by prefix, `*` all but reserved types."""
        return any(
            wanted == event_type or (wanted.endswith("*") and _begins(event_type, wanted[:-1]))
            for wanted in self.event_types
        )


@dataclasses.dataclass(slots=True, eq=False)
class Event:
    """One row of `events`, shared by all its deliveries. Not frozen, because thousands are made per second."""

    event_id: int
    site_id: str
    type: str
    created_at_us: int  # microseconds since 1970, UTC
    payload: bytes | None  # the producer's own JSON text; None if it is large and loaded before it is sent
    endpoint_id: int | None = None  # the only endpoint to deliver to; None if all that subscribe
    options: EventOptions | None = None  # rarely used options; None if none is set
    webhook_id: str = ""  # made together with the body
    triggered_at: str = ""  # made together with the body
    body: bytes | None = None  # the envelope, built once for all deliveries of the event


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class Newest:
    """The newest known event of one `supersede_key` at one endpoint, held by its deliveries (event_log/supersede).

    Attributes:
        event_id: id of the newest event; 0 if none is known.
        before_us: its deliver_before, as long as it has not been sent, microseconds since 1970; None if it has no end.
    """

    event_id: int = 0
    before_us: int | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Line:
    """The deliveries of one ordering_key at one `ordered` endpoint that are in memory (scheduling/ordering).

    Attributes:
        name: the ordering_key; empty for events without one.
        head: the delivery in the endpoint's lane, or given up and not recorded yet; None if there is none.
        ahead: deliveries in memory that wait for the head, oldest first.
        led_at: monotonic seconds at which the head became the head.
        behind: True if `backlog` may have rows of the line that are not in memory.
        blocked: True if the first of these rows waits for its time.
        sure: True if no delivery in memory has become a row since the rows were last read.
        unwritten: ids of events whose rows are not durable yet.
        returning: those of `unwritten` that were in memory, so that later events may have rows already.
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
    """The result of loading a large payload.

    Attributes:
        payload: the payload; None if the delivery must be given up.
        died: the reason for giving it up; None if it was loaded.
        cost: bytes that the payload counts for in the budget that sites share (scheduling/payload_loads).
    """

    payload: bytes | None
    died: Reason | None = None
    cost: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Delivery:
    """The delivery of one event to one endpoint, while it is in memory."""

    event: Event
    endpoint_id: int
    attempts: int  # attempts recorded so far; the next one is attempts + 1
    since: float  # monotonic seconds at which it came into memory
    ticket: object | None = None  # the part of the log it settles (event_log/position); None if it has a row
    in_backlog: bool = False
    age_from_us: int = 0  # start of the age that age_max_s limits, microseconds since 1970
    late: bool = False  # back from `parked` or `held`, or replayed: live traffic goes first
    cause: AttemptCause = AttemptCause.LIVE  # of its next attempt, unless that is a test or a probe
    attempts_before: int = 0  # those of `attempts` before a replay: the schedule starts after them
    newest: Newest | None = None  # the newest event of its supersede_key; None if it has no such key
    line: Line | None = None  # its line, if the endpoint is ordered
    loaded: Loaded | None = None  # the result of loading the event's large payload; None if not loaded
    flight: object | None = None  # its slot while it is in flight (scheduling/slots)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Reply:
    """A response of which at least the head was received.

    Not frozen, because thousands are made per second; nothing changes one.

    Attributes:
        status: the status code sent by the receiver.
        body: at most `response_bytes_max` bytes, possibly cut.
        retry_after: the raw header's value, if present.
        control: the raw value of `webhook-delivery`, lower case, if present.
        location: the raw value of `Location`, if present.
        evidence: JSON text (egress/evidence); None if the status needs none.
    """

    status: int
    body: bytes = b""
    retry_after: str | None = None
    control: str | None = None
    location: str | None = None
    evidence: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Why there was no response.

    Attributes:
        outcome: TIMEOUT, UNREACHABLE, BLOCKED or FAILED; REFUSED if a token endpoint refused before any request.
        error: a constant name, or `name: detail` (names: timeout connect, response; unreachable dns, refused,
            reset, stale_connection, ...; blocked url, scheme, port, ...).
        evidence: JSON text (egress/evidence); None if no connection was begun.
    """

    outcome: Outcome
    error: str
    evidence: str | None = dataclasses.field(default=None, compare=False, repr=False)


Answer: TypeAlias = Reply | Fault
