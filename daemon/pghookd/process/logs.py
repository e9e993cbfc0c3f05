"""Logging: the names of the daemon's log events, and the path of a line to standard output.

On a terminal lines are pretty, otherwise JSON after the priority that the journal reads (sd-daemon(3)). A separate
thread writes them from a bounded buffer: a full pipe or disk, or a stopped reader, may cost lines, but never a
delivery. Control characters in texts of receivers and producers are escaped, so that these cannot manipulate a
terminal that shows the log.

Never here: which events are logged (the loops decide), bodies, headers, secrets.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import logging
import os
import select
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger


class LogEvent(enum.StrEnum):
    """All log events, named `noun.past_verb`; users rely on the names."""

    DAEMON_STARTED = "daemon.started"
    DAEMON_READY = "daemon.ready"
    DAEMON_DRAINING = "daemon.draining"
    DAEMON_STOPPED = "daemon.stopped"
    SETTINGS_RELOADED = "settings.reloaded"
    SETTINGS_REJECTED = "settings.rejected"
    DATABASE_LOST = "database.lost"
    DATABASE_RESTORED = "database.restored"
    DATABASE_FOREIGN = "database.foreign"
    BELL_SLEPT = "bell.slept"
    BELL_RUNG = "bell.rung"
    SHARD_TAKEN = "shard.taken"
    SHARD_LOST = "shard.lost"
    SHARD_WITHHELD = "shard.withheld"  # sessions that are not instances hold the locks: `holders`
    DATABASE_REFUSED = "database.refused"  # Postgres rejected a statement; it is retried
    PARTITIONS_DELAYED = "partitions.delayed"  # a lock was not obtained; retried
    DAY_REFUSED = "day.refused"  # the id clock does not move, because clocks disagree: `reason`
    LOG_REANCHORED = "log.reanchored"
    OUTCOME_DELAYED = "outcome.delayed"  # its row is locked or rejected; retried while its endpoint is paused
    OUTCOME_RESUMED = "outcome.resumed"  # all delayed outcomes of an endpoint are recorded
    OUTCOME_REFUSED = "outcome.refused"  # Postgres rejects this one row; retried once a minute
    DAY_DROPPED = "day.dropped"  # retention: a whole day was removed
    DAY_ARCHIVED = "day.archived"  # the same, to the schema webhooks_archive
    DAY_KEPT = "day.kept"  # older than retention.days, but not settled: `days` and why; logged once a day
    DAY_DELAYED = "day.delayed"  # transactions have kept a table in use for an hour: the day goes later
    DAY_EXPIRED = "day.expired"  # what a day had unsettled after retention.unsettled_days was given up
    EVENT_UNCLAIMED = "event.unclaimed"  # of an unknown site or type: `name`, and the `nearest` known one
    DAY_GONE = "day.gone"  # deliveries of a dropped day are neither recorded nor sent again
    DELIVERY_ATTEMPTED = "delivery.attempted"
    DELIVERY_PARKED = "delivery.parked"
    DELIVERY_BROKEN = "delivery.broken"  # an internal error, recorded as a failed attempt
    DELIVERY_DIED = "delivery.died"
    DELIVERY_SUSPECTED = "delivery.suspected"  # of a crash: named before it is sent, or sent alone
    FILTER_UNDECIDED = "filter.undecided"  # neither true nor false, so delivered; logged once an hour
    ROW_QUARANTINED = "row.quarantined"
    BREAKER_OPENED = "breaker.opened"
    BREAKER_CLOSED = "breaker.closed"
    ENDPOINT_DISABLED = "endpoint.disabled"
    STORM_SUSPECTED = "storm.suspected"
    EMAIL_QUEUED = "email.queued"
    EMAIL_SENT = "email.sent"
    EMAIL_FAILED = "email.failed"
    LOOP_STALLED = "loop.stalled"  # the event loop stalled for `for_s`
    CLOCK_SKEWED = "clock.skewed"  # differs from the database's clock by `skew_s`
    NOTIFICATIONS_STUCK = "notifications.stuck"  # an open transaction of a listener fills the queue
    LINES_DROPPED = "lines.dropped"  # standard output did not accept `count` lines
    LIBRARY_WARNED = "library.warned"  # a record of the logging module, from asyncio or a library


BUFFER_BYTES_MAX: Final = 4 * 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024
_FLUSH_S: Final = 1.0
_STDOUT: Final = 1
_TEXT_MAX: Final = 2000  # characters of one value
_DEPTH_MAX: Final = 4
_PRIORITY: Final = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>", "critical": b"<2>"}
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


# Lines out --------------------------------------------------------------------------------------------------


class LogSink:
    """Writes lines to a file descriptor in a thread, so that the caller never waits.

    Args:
        descriptor: the file descriptor, which stays open.
        bytes_max: maximum of bytes buffered; further lines are dropped and counted.
    """

    def __init__(self, descriptor: int, bytes_max: int = BUFFER_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._busy = False
        self.dropped = 0  # lines dropped so far
        self._told = 0  # those already reported in a lines.dropped line
        self._thread = threading.Thread(target=self._carry, name="journal", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Buffer a line, which includes its newline; may be called from any thread."""
        with self._changed:
            if self._closing or self._bytes + len(line) > self._bytes_max:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def untold(self) -> int:
        """Return how many lines were dropped since the last report; 0 while half of the buffer is full."""
        with self._changed:
            count = self.dropped - self._told if self._bytes < self._bytes_max // 2 else 0
            self._told += count
            return count

    def flush(self, within_s: float = _FLUSH_S) -> bool:
        """Wait until all lines are written; return False if this takes longer than `within_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._busy, within_s)

    def close(self, within_s: float = _FLUSH_S) -> None:
        """Flush, and end the thread; do not wait for a thread that hangs in a write."""
        self.flush(within_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(0.1)

    def _carry(self) -> None:
        while batch := self._next():
            lost = self._write(b"".join(batch))
            with self._changed:
                self._busy = False
                self.dropped += len(batch) if lost else 0
                self._changed.notify_all()

    def _next(self) -> list[bytes]:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            batch = list(self._lines)
            self._lines.clear()
            self._bytes = 0
            self._busy = bool(batch)
            return batch

    def _write(self, data: bytes) -> bool:
        """Write all data; return True if it was lost, for example to a closed pipe or a full disk."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # the descriptor was made non-blocking from outside
                select.select([], [self._descriptor], [], 1.0)
            except OSError:
                return True
        return False


class _SinkLogger:
    """The logger to which structlog passes rendered lines."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink.put(line)

    debug = info = warning = error = critical = exception = msg


# Making a line ----------------------------------------------------------------------------------------------


def harmless(text: str, *, multiline: bool = False) -> str:
    r"""Return the text cut to size, with invisible characters (control, direction) as escapes such as \x1b."""
    if len(text) > _TEXT_MAX and not multiline:
        text = text[:_TEXT_MAX] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (multiline and c in "\n\t") else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _tame(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return harmless(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)  # orjson supports no other integers
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        return {harmless(str(key)): _tame(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEPTH_MAX:
        return [_tame(each, depth + 1) for each in value]
    return harmless(str(value))


_HEAD: Final = ("timestamp", "level", "event")  # the first keys of a line


def _tame_all(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    line = {key: event[key] for key in _HEAD if key in event}
    for key, value in event.items():
        line[key] = harmless(str(value), multiline=True) if key == "exception" else _tame(value)
    return line


class _Json:
    """Renders one JSON object per line, after its priority if the journal reads the lines."""

    def __init__(self, *, priority: bool) -> None:
        self._priority = priority

    def __call__(self, _logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> bytes:
        prefix = _PRIORITY.get(event.get("level", "info"), b"<6>") if self._priority else b""
        line = orjson.dumps(event)
        if len(line) > LINE_BYTES_MAX:
            kept = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
            line = orjson.dumps({**kept, "cut": line[: LINE_BYTES_MAX // 4].decode("utf-8", "ignore")})
        return prefix + line + b"\n"


class _Pretty:
    """Renders lines for people. Tracebacks are plain: rich ones print local variables, which may be secrets."""

    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=20
        )

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        text = self._render(logger, method, event)
        return text.encode("utf-8", "replace")[:LINE_BYTES_MAX] + b"\n"


class _Drops:
    """Reports dropped lines before the next line."""

    def __init__(self, sink: LogSink, *, priority: bool) -> None:
        self._sink = sink
        self._json = _Json(priority=priority)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        count = self._sink.untold()
        if count:
            notice = {"timestamp": event.get("timestamp"), "level": "warning", "count": count}
            self._sink.put(self._json(logger, method, {**notice, "event": LogEvent.LINES_DROPPED}))
        return event


# Setting up -------------------------------------------------------------------------------------------------


def configure(
    form: str = "auto",
    level: str = "info",
    environ: Mapping[str, str] = os.environ,
    descriptor: int | None = None,
) -> LogSink:
    """Set up structlog and logging. After a reload call it again, and then close the previous sink.

    Args:
        form: the setting `log.format`.
        level: the setting `log.level`.
        environ: the environment, for NO_COLOR and JOURNAL_STREAM.
        descriptor: the file descriptor for lines; None for standard output.

    Returns:
        The sink, to be closed last.
    """
    target = _standard_output() if descriptor is None else descriptor
    sink = LogSink(target)
    pretty = form == "pretty" or (form == "auto" and os.isatty(target))
    priority = form == "auto" or "JOURNAL_STREAM" in environ
    colors = pretty and os.isatty(target) and not environ.get("NO_COLOR")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _tame_all,
            _Drops(sink, priority=priority),
            _Pretty(colors=colors) if pretty else _Json(priority=priority),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=False,  # otherwise a reload could not change level and format
    )
    _take_over_logging()
    return sink


def _standard_output() -> int:
    """Return the descriptor of standard output; if closed, of the null device, since a socket may get its number."""
    try:
        os.fstat(_STDOUT)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
    return _STDOUT


def logger() -> FilteringBoundLogger:
    """Return a logger; its calls are `log.info(LogEvent.SHARD_TAKEN, shard=3)`."""
    bound: FilteringBoundLogger = structlog.get_logger()
    return bound


class _Library(logging.Handler):
    """Handles records that asyncio and libraries log through the logging module."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record as library.warned; ignore errors while doing so."""
        with contextlib.suppress(Exception):
            level = "error" if record.levelno >= logging.ERROR else "warning"
            say = getattr(logger(), level)
            say(LogEvent.LIBRARY_WARNED, name=record.name, text=record.getMessage(), exc_info=record.exc_info)


def _take_over_logging() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Library)]:
        root.removeHandler(handler)
    root.addHandler(_Library(level=logging.WARNING))
