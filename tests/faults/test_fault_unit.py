"""The unit is run: systemd/pghookd.service unchanged, by a systemd of the test's own, in all of its sandbox.

Changed by drop-ins are only where it logs to, how long systemd waits, and the values that the guide asks an operator to
change so.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import booted
import installation
import pytest
import pytest_asyncio

from pghookd.postgres import migrate
from support import checker
from support.events import emit
from support.fault_server import Certificates
from support.receiver import Response, read_log

REFUSAL = booted.refusal()
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL or "-")

LOG = "/run/pghookd.log"
PASSWORD = "quite-unlikely-password"
DROP_IN = f"""
[Service]
StandardOutput=append:{LOG}
RestartSec=100ms
"""
SETTINGS = """
[database]
heartbeat_s = 0.5
lease_s = 5
[delivery]
timeout_s = 3
connect_timeout_s = 1
[breaker]
share = 0
[poll]
fallback_s = 0.5
[egress]
allow = "127.0.0.0/8,169.254.169.254"
[retry]
schedule = "0.3s,0.5s,1s,1s,1s,1s,1s,1s,1s,1s"
throttle_floor_s = 0
"""
WRITABLE = """
awk '$6 ~ /^rw/ && $5 !~ "^/(proc|sys)(/|$)" {print $5}' /proc/self/mountinfo | while read each; do
  find "$each" -xdev -writable ! -type s ! -type l ! -type c 2>/dev/null
done
"""
# Where clouds keep what a machine may know, and one address that NAT64 leads there.
METADATA = (
    *(
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.169.253",
        "169.254.42.42",
        "169.254.0.23",
    ),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
)
METADATA6 = (
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    *("fe80::a9fe:a9fe%lo", "64:ff9b::a9fe:a9fe"),
)


@pytest.fixture(scope="module")
def system(server, server_url, boot):
    """Return a booted systemd where pghookd is installed, and stopped."""
    sockets = Path(parse_qs(urlsplit(server_url).query).get("host", ["-"])[0])
    if not sockets.is_absolute():
        pytest.skip("Postgres has no Unix socket here, and the unit's network has no other way out")
    if server is not None:
        _open(server, sockets)
    made = boot(sockets)
    installation.install(made)
    made.call("systemctl", "stop", "pghookd.service")
    made.drop_in("test", DROP_IN)
    return made


def _open(server, sockets):
    """Allow the unit's user to connect with a password; by default only the user that runs the server may connect."""
    sockets.chmod(0o711)
    for each in sockets.glob(".s.PGSQL.*[0-9]"):
        each.chmod(0o777)
    access = server.data / "pg_hba.conf"
    access.write_text(f"local all +webhooks_daemon scram-sha-256\n{access.read_text()}")


@pytest_asyncio.fixture(loop_scope="session")
async def unit(system, admin, database, until):
    """Return the unit, stopped, with settings and a login of its own for `database`."""
    await migrate.migrate(database, roles=True)
    await admin.execute("select pg_reload_conf()")
    role = f"pghookd_unit_{os.getpid()}"
    await admin.execute(f"create role {role} login password '{PASSWORD}' in role webhooks_daemon")
    made = Unit(system, until, _url(database, role))
    try:
        yield made
    finally:
        made.clear()
        await admin.execute(f"drop role {role}")


def _url(database, role):
    """Return the URL as it is good inside."""
    parts = urlsplit(database)
    port = parse_qs(parts.query).get("port", ["5432"])[0]
    return f"postgresql://{role}:{PASSWORD}@{parts.path}?host={booted.TESTS_POSTGRES}&port={port}"


class Unit:
    """The unit as its operator sees it."""

    def __init__(self, system, until, url):
        self.system = system
        self._until = until
        self._changes = []
        self.configure("")
        system.write("/etc/pghookd/credentials/database.url", url, 0o600)

    def configure(self, more):
        self.system.write("/etc/pghookd/pghookd.toml", SETTINGS + more)

    def change(self, name, text):
        self._changes.append(name)
        self.system.drop_in(name, f"[Service]\n{text}\n")

    def does(self, verb, *, check=True):
        return self.system.call("systemctl", *verb.split(), "pghookd.service", check=check)

    def start(self):
        """Start it and wait until it is ready: that is what `systemctl start` does with Type=notify."""
        self.does("start")
        assert self.shows("StatusText").startswith("reading the log")

    def shows(self, name):
        return self.system.shows(name)

    def said(self, event):
        lines = [json.loads(line.partition(">")[2]) for line in self.log().splitlines()]
        return [line for line in lines if line["event"] == event]

    def log(self):
        with contextlib.suppress(FileNotFoundError):
            return self.system.file(LOG).read_text()
        return ""

    def clear(self):
        self.does("kill --signal=KILL", check=False)
        self.does("stop", check=False)
        self.does("reset-failed", check=False)
        self.system.file(LOG).unlink(missing_ok=True)
        for name in self._changes:
            self.system.drop_in(name, "")


@pytest_asyncio.fixture(loop_scope="session")
async def inside(system, db, tmp_path):
    """Return a receiver on the unit's network; `log` of it is for the checker. Site `s` has an endpoint there."""
    log = tmp_path / "received.jsonl"
    async with booted.Inside(system, log=log) as running:
        running.path = log
        await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await db.execute(
            "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, webhooks.new_secret())",
            running.url("/a"),
        )
        yield running


async def test_it_delivers_from_inside_its_sandbox(unit, inside, db, delivered):
    unit.start()
    assert unit.shows("ActiveState") == "active"
    await emit(db, 50)
    await delivered(db, 50)
    found = await checker.check(db, read_log(inside.path), repeats_max=0)  # signatures as well
    assert found.received == 50
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{unit.system.unit_pid()}/status").read_text().splitlines()
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["Uid"].split() == [unit.shows("UID")] * 4
    assert status["Uid"].split()[0] != "0"
    assert status["Umask"] == "0077"
    for each in ("user", "mnt", "ipc", "uts"):
        assert (
            Path(f"/proc/{unit.system.unit_pid()}/ns/{each}").readlink()
            != unit.system.file(f"/proc/1/ns/{each}").readlink()
        )


OTHERS = {
    "EGRESS_CA_FILE": "/etc/pghookd/authority.pem",
    "SMTP_HOST": "127.0.0.1",
    "SMTP_TLS": "none",
    "MAIL_SENDER": "hooks@platform.example",
    "MAIL_FIRST_WAIT_S": "0",
    "MAIL_CHECK_S": "0.2",
}
NAME = "hooks.shop.example.com"


async def test_all_that_needs_more_than_a_socket_works_in_there(unit, system, db, tmp_path, delivered, until):
    """A name is looked up, TLS verified and a client certificate shown, a secret encrypted, an event signed by Ed25519,
    a mail rendered and sent.
    """
    authority = Certificates(tmp_path)
    key = base64.b64encode(os.urandom(32)).decode()
    system.write("/etc/pghookd/credentials/secrets.key", f"unit:{key}", 0o600)
    system.write("/etc/pghookd/authority.pem", authority.ca_file.read_text())
    async with (
        booted.naming_inside(system, {NAME: ["127.0.0.1"]}),
        booted.InsideMailbox(system) as box,
        booted.Inside(
            system, tls=authority.demand(authority.server_context("fine", f"DNS:{NAME}"))
        ) as receiver,
    ):
        receiver.paths["/fails"] = lambda _request: 500
        variables = [f"PGHOOKD_{name}={value}" for name, value in {**OTHERS, "SMTP_PORT": box.port}.items()]
        credential = "LoadCredential=secrets.key:/etc/pghookd/credentials/secrets.key"
        unit.change("others", "\n".join([credential, f"Environment={' '.join(variables)}"]))
        await db.execute(
            "insert into webhooks.sites (site_id, name, owner_email) values ('s', 'a site', 'anna@shop.example')"
        )
        await db.execute(
            "insert into webhooks.endpoints (site_id, url, secret, auth) select 's', $1 || path, $2, $3::text::jsonb"
            " from unnest('{/a,/fails}'::text[]) path",
            f"https://{NAME}:{receiver.port}",
            "whsk_" + base64.b64encode(os.urandom(32)).decode(),
            json.dumps({"client_certificate": authority.client("ours")}),
        )
        unit.start()
        await emit(db)
        await delivered(db, 1)
        (mail,) = await box.wait_for(1)
        assert mail.recipients == ["anna@shop.example"]
        (request,) = receiver.of("/a")
        assert request.headers["webhook-signature"].startswith("v1a,")
        sealed = "secret like 'enc:v1:unit:%' and auth::text like '\"enc:v1:unit:%'"
        sql = f"select bool_and({sealed}) from webhooks.endpoints"
        await until(lambda: db.fetchval(sql), 20)


async def test_it_is_not_ready_while_the_database_is_away(unit, system, until):
    system.write("/etc/pghookd/credentials/database.url", "postgresql://x@/x?host=/run/nowhere", 0o600)
    unit.does("start --no-block")
    await until(lambda: unit.shows("StatusText").startswith("waiting for the database"))
    assert unit.shows("ActiveState") == "activating"


async def test_the_password_is_in_a_credential_and_nowhere_else(unit, system):
    unit.start()
    process = Path(f"/proc/{system.unit_pid()}")
    environ = process.joinpath("environ").read_text()
    assert "CREDENTIALS_DIRECTORY=/run/credentials/pghookd.service" in environ
    credential = "/run/credentials/pghookd.service/database.url"
    assert PASSWORD in system.call_as_unit("cat", credential)
    shown = system.call("systemctl", "show", "pghookd.service").stdout
    for text in (environ, process.joinpath("cmdline").read_text(), shown, unit.log(), system.console()):
        assert PASSWORD not in text
    others = system.call("setpriv", "--reuid=65534", "--clear-groups", "cat", credential, check=False)
    assert "Permission denied" in others.stderr


async def test_nothing_can_be_written(unit, system):
    """And files of others are not visible either."""
    system.call("touch", "/tmp/of-others")  # noqa: S108 - a tmpfs of the systemd's own
    unit.start()
    assert system.call_as_unit("sh", "-c", WRITABLE) == ""
    seen = system.call_as_unit("sh", "-c", "ls /tmp; stat -c %a /home /root /dev/shm")
    assert seen.split() == ["0", "0", "0"]


async def test_it_reads_its_settings_again(unit, inside, db, until, delivered):
    unit.start()
    pid = unit.shows("MainPID")
    unit.configure('[log]\nlevel = "debug"\n')
    unit.does("reload")
    await until(lambda: unit.said("settings.reloaded"))
    unit.configure('[log]\nlevel = "loud"\n')
    unit.does("reload")
    await until(lambda: unit.said("settings.rejected"))
    await emit(db)
    await delivered(db, 1)
    assert (unit.shows("MainPID"), unit.shows("ActiveState")) == (pid, "active")


async def test_one_that_hangs_is_killed_and_started_again(unit, system, inside, db, until, delivered):
    unit.change("quick", "WatchdogSec=3")
    unit.start()
    pid = unit.shows("MainPID")
    os.kill(system.unit_pid(), signal.SIGSTOP)
    await emit(db, 5)
    await until(lambda: unit.shows("NRestarts") == "1", 15)
    await until(lambda: unit.shows("ActiveState") == "active", 15)
    assert unit.shows("MainPID") != pid
    assert "Watchdog timeout" in system.console()
    await delivered(db, 5)
    await checker.check(db, read_log(inside.path), repeats_max=0)


async def test_one_that_is_killed_is_started_again(unit, system, until):
    unit.start()
    os.kill(system.unit_pid(), signal.SIGKILL)
    await until(lambda: unit.shows("NRestarts") == "1", 15)
    await until(lambda: unit.shows("ActiveState") == "active", 15)


async def test_wrong_settings_are_not_tried_again(unit, until):
    unit.configure('[retry]\nschedule = "soon"\n')
    assert unit.does("start", check=False).returncode
    assert unit.shows("ExecMainStatus") == "78"
    assert (unit.shows("ActiveState"), unit.shows("SubState")) == ("failed", "failed")  # not: auto-restart
    assert unit.shows("NRestarts") == "0"


async def test_it_ends_in_order(unit, inside, db, until):
    inside.script = lambda _request: Response(delay_s=1.0)
    unit.start()
    await emit(db, 2)
    await until(lambda: inside.in_flight == 2)
    started = time.monotonic()
    await asyncio.to_thread(
        unit.does, "stop"
    )  # returns once it has ended, killed or not; the receiver goes on
    assert time.monotonic() - started < 20
    assert (unit.shows("Result"), unit.shows("ExecMainStatus")) == ("success", "0")
    assert unit.said("daemon.stopped")
    await checker.check(db, read_log(inside.path), repeats_max=0)


@pytest.fixture
def walled(unit, system):
    """Return the unit if the kernel filters the packets of control groups, which takes cgroup BPF."""
    if shutil.which("ip") is None:
        pytest.skip("no ip here, to give the network its addresses: apt-get install iproute2")
    unit.does("start")
    if "does not support BPF/cgroup firewalling" in system.console():
        pytest.skip("the kernel has no cgroup BPF: IPAddressDeny= does nothing here")
    return unit


async def test_no_metadata_service_can_be_reached(walled, system):
    """All of them answer on this network; a process of the unit's control group does not come through to any."""
    with contextlib.closing(system.listen()) as v4, contextlib.closing(system.listen(socket.AF_INET6)) as v6:
        port, port6 = v4.getsockname()[1], v6.getsockname()[1]
        targets = {(each, port) for each in METADATA} | {(each, port6) for each in METADATA6}
        others = {("127.0.0.1", port), ("::1", port6)}
        for address, _ in targets:
            system.has_address(address.removesuffix("%lo"))
        assert system.reach_from_beside(targets | others) == targets | others
        assert system.reach_from_unit(targets | others) == others


async def test_the_second_wall_holds_where_the_first_was_opened(walled, system, inside, db, until, delivered):
    """`egress.allow` names the metadata service; only IPAddressAllow= opens it indeed."""
    walled.start()
    system.has_address("169.254.169.254")
    await db.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, webhooks.new_secret())",
        inside.url("/metadata").replace("127.0.0.1", "169.254.169.254"),
    )
    await emit(db)
    sql = "select count(*) from webhooks.attempts where outcome = 'timeout' and error = 'connect'"
    await until(lambda: db.fetchval(sql))
    await delivered(db, 1)
    assert [request.path for request in inside.requests] == ["/a"]
    await asyncio.to_thread(
        walled.change, "resolver", "IPAddressAllow=169.254.169.254"
    )  # the receiver goes on
    await asyncio.to_thread(walled.does, "restart")
    await delivered(db, 2)
    assert [request.path for request in inside.requests] == ["/a", "/metadata"]
