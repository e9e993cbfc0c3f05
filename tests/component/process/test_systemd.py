"""The messages to systemd, on real datagram sockets."""

from __future__ import annotations

import socket
import uuid

import pytest

from pghookd.process.systemd import Notifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = str(tmp_path / "notify") if request.param == "path" else f"@pghookd-{uuid.uuid4()}"
        listener.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        listener.settimeout(5)
        yield name, listener


def test_states_arrive_as_systemd_reads_them(manager):
    name, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.ready("reads the log")
    assert listener.recv(4096) == b"READY=1\nSTATUS=reads the log"
    assert notifier.status("stands by")
    assert listener.recv(4096) == b"STATUS=stands by"
    assert notifier.reloading(1_234_567)
    assert listener.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=1234567"
    assert notifier.watchdog()
    assert listener.recv(4096) == b"WATCHDOG=1"
    assert notifier.stopping()
    assert listener.recv(4096) == b"STOPPING=1"
    notifier.close()
    assert not notifier.watchdog()


def test_a_status_cannot_smuggle_in_another_assignment(manager):
    name, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("away\nREADY=1\x1b[0m")
    notifier.close()
    assert listener.recv(4096) == b"STATUS=away READY=1 [0m"


def test_a_manager_that_does_not_read_never_blocks(manager):
    name, _listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    handed_over = 0
    while notifier.watchdog():  # ends once the socket is full, instead of hanging
        handed_over += 1
    notifier.close()
    assert handed_over > 0


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_is_sent(environ):
    assert not Notifier(environ).ready("alone")


def test_a_manager_that_is_gone_is_not_a_fault(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert not notifier.ready("alone")
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "41"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_asks_only_the_process_it_means(environ, seconds):
    assert watchdog_interval_s(environ, pid=42) == seconds
