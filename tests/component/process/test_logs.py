"""Log lines: what they look like in each place, and that nobody can make them lie or make the daemon wait."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys

import orjson
import pytest
import structlog

from pghookd.process import logs
from pghookd.process.logs import LogEvent, LogSink, harmless
from pghookd.settings.schema import LogSettings


@pytest.fixture(autouse=True)
def _as_before():
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each).__module__ == logs.__name__]:
        root.removeHandler(handler)


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def lines_of(pipe, log=None, environ=None, say=None):
    log = log or LogSettings()
    sink = logs.configure(log.format, log.level, environ or {}, pipe[1])
    say(logs.logger())
    sink.close()
    return os.read(pipe[0], 65536).splitlines()


def test_a_pipe_gets_json_behind_a_priority(pipe):
    def say(log):
        log.info(LogEvent.SHARD_TAKEN, shard=3)
        log.warning(LogEvent.BREAKER_OPENED, endpoint_id=1)
        log.error(LogEvent.DATABASE_LOST)
        log.debug(LogEvent.BELL_RUNG)

    lines = lines_of(pipe, say=say)
    assert [line[:3] for line in lines] == [b"<6>", b"<4>", b"<3>"]
    first = orjson.loads(lines[0][3:])
    assert first.pop("timestamp").endswith("Z")
    assert first == {"level": "info", "event": "shard.taken", "shard": 3}


@pytest.mark.parametrize(("environ", "prefix"), [({}, b"{"), ({"JOURNAL_STREAM": "8:1"}, b"<")])
def test_json_by_order_is_plain_unless_the_journal_reads_it(pipe, environ, prefix):
    [line] = lines_of(pipe, LogSettings(format="json"), environ, lambda log: log.info(LogEvent.DAEMON_READY))
    assert line[:1] == prefix


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_pretty_lines_and_colours_unless_refused(environ, coloured):
    master, terminal = pty.openpty()
    [line] = lines_of(
        (master, terminal), environ=environ, say=lambda log: log.info(LogEvent.DAEMON_READY, shard=1)
    )
    os.close(master)
    os.close(terminal)
    assert b"daemon.ready" in line
    assert (b"\x1b[" in line) == coloured


def test_pretty_by_order_into_a_pipe_has_no_colours(pipe):
    [line] = lines_of(pipe, LogSettings(format="pretty"), say=lambda log: log.info(LogEvent.DAEMON_READY))
    assert b"daemon.ready" in line
    assert b"\x1b" not in line


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_what_strangers_wrote_cannot_act_on_a_terminal(pipe, form):
    evil = "x\x1b[2J\r\n<3>{}\x9b\u202e\ud800\x00"
    lines = lines_of(
        pipe,
        LogSettings(format=form),
        say=lambda log: log.info(LogEvent.DELIVERY_ATTEMPTED, error=evil, more=[evil]),
    )
    assert len(lines) == 1
    text = lines[0].decode()
    assert text.isprintable()
    assert r"\x1b[2J" in text.replace("\\\\", "\\")


@pytest.mark.parametrize(
    "value", [2**70, -(2**70), float("nan"), object, {1: {2: {3: {4: {5: 6}}}}}, b"\xff", {"a"}]
)
def test_no_value_makes_a_line_fail(pipe, value):
    [line] = lines_of(pipe, say=lambda log: log.info(LogEvent.DAEMON_READY, value=value))
    assert orjson.loads(line[3:])["event"] == "daemon.ready"


def test_long_values_and_lines_are_cut(pipe):
    def say(log):
        log.info(LogEvent.DAEMON_READY, text="x" * 100_000)
        log.info(LogEvent.DAEMON_READY, many=["x" * 1000] * 100)

    lines = lines_of(pipe, say=say)
    assert [len(line) < logs.LINE_BYTES_MAX for line in lines] == [True, True]
    assert orjson.loads(lines[1][3:])["event"] == "daemon.ready"


def test_an_exception_is_logged_without_local_variables(pipe):
    def say(log):
        hidden = ["hunter2"]
        try:
            hidden.index(3)
        except ValueError:
            log.exception(LogEvent.DAEMON_STOPPED)

    lines = lines_of(pipe, LogSettings(format="pretty"), say=say)
    assert any(b"ValueError" in line for line in lines)
    assert not any(b"'hunter2'" in line for line in lines)


def test_what_libraries_say_comes_in_the_same_form(pipe):
    [line] = lines_of(pipe, say=lambda _log: logging.getLogger("asyncio").error("slow\n%s", "callback"))
    told = orjson.loads(line[3:])
    assert (told["event"], told["level"], told["name"]) == ("library.warned", "error", "asyncio")


def test_a_reload_changes_the_level(pipe):
    log = logs.logger()
    logs.configure(environ={}, descriptor=pipe[1]).close()
    sink = logs.configure(level="debug", environ={}, descriptor=pipe[1])
    log.debug(LogEvent.BELL_SLEPT)
    sink.close()
    assert b"bell.slept" in os.read(pipe[0], 65536)


def test_a_reader_that_stopped_costs_lines_and_no_time(pipe):
    reading, writing = pipe
    sink = LogSink(writing, bytes_max=10_000)
    while sink.flush(within_s=0.1):  # until the pipe is full and the write hangs
        sink.put(b"x" * 8191 + b"\n")
    for _ in range(100):
        sink.put(b"y" * 999 + b"\n")
    assert sink.dropped >= 90
    assert sink.untold() == 0  # there is no room to report it yet
    os.set_blocking(reading, False)
    while not sink.flush(within_s=0.01):
        try:
            os.read(reading, 65536)
        except BlockingIOError:
            continue
    assert sink.untold() == sink.dropped
    sink.put(b"again\n")
    sink.close()
    received = b""
    while not received.endswith(b"again\n"):
        received = os.read(reading, 65536)


def test_lines_that_were_dropped_are_counted_in_the_log(pipe):
    sink = logs.configure(environ={}, descriptor=pipe[1])
    sink.put(b"x" * (logs.BUFFER_BYTES_MAX + 1))
    logs.logger().info(LogEvent.DAEMON_READY)
    sink.close()
    first, second = os.read(pipe[0], 65536).splitlines()
    assert orjson.loads(first[3:])["event"] == "lines.dropped"
    assert orjson.loads(first[3:])["count"] == 1
    assert orjson.loads(second[3:])["event"] == "daemon.ready"


@pytest.mark.parametrize("device", ["/dev/full", None])
def test_a_full_disk_and_a_closed_pipe_cost_lines_and_nothing_else(device):
    if device is None:
        reading, descriptor = os.pipe()
        os.close(reading)
    else:
        descriptor = os.open(device, os.O_WRONLY)
    sink = logs.configure(environ={}, descriptor=descriptor)
    logs.logger().info(LogEvent.DAEMON_READY)
    assert sink.flush(5)
    assert sink.dropped == 1
    sink.close()
    os.close(descriptor)


def test_a_closed_standard_output_is_not_a_socket_opened_later():
    code = (
        "import os, socket; from pghookd.process import logs;"
        "sink = logs.configure(); left, right = socket.socketpair();"
        "logs.logger().info(logs.LogEvent.DAEMON_READY); sink.close();"
        "os.write(2, repr(sorted((left.fileno(), right.fileno()))[0] > 1).encode())"
    )
    command = f'exec "{sys.executable}" -c "$0" >&-'
    done = subprocess.run(["sh", "-c", command, code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "True")


NAMES = """
daemon.started daemon.ready daemon.draining daemon.stopped settings.reloaded settings.rejected
database.lost database.restored database.foreign bell.slept bell.rung shard.taken shard.lost
log.reanchored delivery.attempted delivery.parked delivery.died row.quarantined breaker.opened
breaker.closed endpoint.disabled storm.suspected email.queued email.sent email.failed
"""


def test_the_events_that_others_rely_on_are_all_there():
    assert set(NAMES.split()) <= set(LogEvent)


def test_every_event_is_named_noun_past_verb():
    for event in LogEvent:
        noun, verb = event.split(".")
        assert noun.isalpha()
        assert verb.isalpha()
        assert event.name == event.value.upper().replace(".", "_")


def test_harmless_leaves_plain_text_as_it_is():
    assert harmless("Grüße, 世界 {}") == "Grüße, 世界 {}"
    assert harmless("a\nb") == r"a\nb"
    assert harmless("a\nb", multiline=True) == "a\nb"
