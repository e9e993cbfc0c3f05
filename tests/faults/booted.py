"""A systemd of the test's own, booted as PID 1 in namespaces of its own; `installation` installs pghookd there.

Its /etc is a copy, its /opt, /run and /tmp are its own, and its network has a loopback and nothing else: every packet,
to a cloud's metadata address too, is lost. The tests' Postgres is reached through a socket in TESTS_POSTGRES.
When the last process has been killed nothing is left but a folder of the test's and an empty control group, which
`close` removes. Never here: a change to the machine that the tests run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import reach

from support.fault_server import LyingNameServer
from support.mail_server import Mailbox
from support.receiver import Receiver, _Protocol

ROOT = Path(__file__).parent.parent.parent
SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "setpriv", "setsid", "ldconfig", "systemctl", "systemd-sysusers")
UNITS = "/etc/systemd/system"  # all the units there are: nothing of the machine's own is started
TESTS_POSTGRES = "/run/tests-postgresql"
GROUP = "pghookd-test-"
CALL_S = 60.0

_SOURCES = (Path(sys.base_prefix), Path(sysconfig.get_path("purelib")))  # this test's Python, its packages
_CLONE_NEWNET = 0x40000000
_NAMESPACES = ("--pid", "--mount", "--mount-proc", "--cgroup", "--uts", "--ipc", "--net")

# Whatever a unit with the usual dependencies pulls in, as empty as it can be.
_BARE = {
    "start.target": "[Unit]\nDescription=Nothing is started\n",
    "sysinit.target": "[Unit]\n",
    "basic.target": "[Unit]\n",
    "shutdown.target": "[Unit]\nDefaultDependencies=no\nRefuseManualStart=yes\n",
    "multi-user.target": "[Unit]\n",
    "network-online.target": "[Unit]\n",
}

# $1 the folder, $2 the terminal, $3 the folder of the Postgres socket, $4 the Python, $5 the packages, $6 the checkout.
_BOOT = f"""
set -e
mount --make-rprivate /
lend() {{ mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }}
lend "$4" "$1/opt/python"
lend "$5" "$1/opt/packages"
lend "$6" "$1/opt/checkout"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir {TESTS_POSTGRES}
mount --bind "$3" {TESTS_POSTGRES}
mount --bind "$2" /dev/console
mount --rbind "$1/opt" /opt
mount --bind "$1/etc" /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
for each in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$each"; done
for each in /var/lib/private /var/lib/systemd /var/cache/ldconfig; do
  [ ! -d "$each" ] || mount -t tmpfs -o mode=700 tmpfs "$each"
done
mount --make-rshared /
ldconfig
exec env -i container=probe PATH="$PATH" SYSTEMD_UNIT_PATH={UNITS} SYSTEMD_LOG_COLOR=0 \
  {SYSTEMD} --system --unit=start.target --log-target=console --show-status=no
"""


def refusal():
    """Return why no systemd can be booted here; an empty text where one can."""
    if os.geteuid() != 0:
        return "only root may boot a systemd"
    closed = [str(path) for path in _SOURCES if path.stat().st_mode & 0o005 != 0o005]
    if closed:
        return f"the unit's user could not read {', '.join(closed)}"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or 'systemd'} (apt-get install systemd)"
    if _groups() is None:
        return "no cgroup2 is mounted"
    done = subprocess.run(
        ["unshare", "--fork", *_NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/run"],
        check=False,
        capture_output=True,
        text=True,
        timeout=CALL_S,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


def _groups():
    """Return where the second version of control groups is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    return None


class Booted:
    """The running systemd.

    Attributes:
        pid: its first process, as seen from here.
    """

    def __init__(self, folder, sockets):
        """Lay out its files; `boot` starts it.

        Args:
            folder: for its files; it belongs to the test.
            sockets: the folder of the Postgres socket; others must be able to pass through it.
        """
        self._folder = folder
        self._sockets = sockets
        self._group = _groups() / f"{GROUP}{os.getpid()}"
        self._process = self._listening = None
        self._terminal, self._slave = pty.openpty()
        self._console = bytearray()
        self._lay_out()

    # Files ------------------------------------------------------------------------------------------------------------

    def _lay_out(self):
        """An /etc without units, and an /opt where others can read this test's Python, whatever hides its home."""
        opt = self._folder / "opt"
        for name in ("python", "packages", "checkout", "libraries"):
            (opt / name).mkdir(parents=True)
        library = sysconfig.get_config_var("INSTSONAME")
        (opt / "libraries" / library).symlink_to(f"/opt/python/lib/{library}")
        shutil.copytree("/etc", self._folder / "etc", symlinks=True)
        shutil.rmtree(self._folder / UNITS.lstrip("/"))
        for each in (opt, self._folder / "etc"):
            each.chmod(0o755)
        self.write("/etc/ld.so.conf.d/python.conf", "/opt/libraries\n")
        self.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        self.write("/etc/nsswitch.conf", "hosts: files dns\n")
        for name, text in _BARE.items():
            self.write(f"{UNITS}/{name}", text)

    def write(self, path, text, mode=0o644):
        """Write a file below its /etc or its /opt."""
        file = self._folder / path.lstrip("/")
        if file.is_symlink():  # it may lead out of the copy
            file.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.chmod(mode)
        file.write_text(text)

    def drop_in(self, name, text):
        """Change the unit as an operator does; an empty text takes the change back."""
        self.write(f"{UNITS}/pghookd.service.d/{name}.conf", text)
        self.call("systemctl", "daemon-reload")

    def file(self, path):
        """Return the path of a file that is seen inside as `path`."""
        return Path(f"/proc/{self.pid}/root{path}")

    # Processes --------------------------------------------------------------------------------------------------------

    def boot(self):
        """Start it; `state` reports if it has come up."""
        _sweep()
        self._group.mkdir()
        arguments = (self._folder, os.ttyname(self._slave), self._sockets)
        self._process = subprocess.Popen(
            [
                *("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self._group),
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child=KILL", *_NAMESPACES),
                *("sh", "-c", _BOOT, "boot", *arguments, *_SOURCES, ROOT),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._slave,
            stderr=self._slave,
        )
        self._listening = threading.Thread(target=self._hear)
        self._listening.start()

    def _hear(self):
        """Read all output to the terminal, since a full one would stop systemd; ends with the last writer."""
        with contextlib.suppress(OSError):
            while more := os.read(self._terminal, 65536):
                self._console += more

    @property
    def pid(self):
        of = self._process.pid
        return int(Path(f"/proc/{of}/task/{of}/children").read_text())

    def console(self):
        """Return the output of systemd so far."""
        return self._console.decode("utf-8", "replace")

    def call(self, *words, given="", check=True):
        """Run a program inside, with a text as its standard input; return the ended process."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-u", "-i", "-C", *words],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.stderr or done.stdout}\n{self.console()}")
        return done

    def state(self):
        """Return what `systemctl is-system-running` says; an empty text while nobody answers."""
        if self._process.poll() is not None:
            raise AssertionError(f"it has ended:\n{self.console()}")
        try:
            return self.call("systemctl", "is-system-running", check=False).stdout.strip()
        except ValueError:  # its first process is not there yet
            return ""

    def shows(self, name):
        """Return a property of the unit."""
        return self.call("systemctl", "show", "pghookd.service", "--value", "-p", name).stdout.strip()

    def unit_pid(self):
        """Return the one process of the unit, as seen from here."""
        (line,) = self._unit_group().joinpath("cgroup.procs").read_text().split()
        return int(line)

    def call_as_unit(self, *words):
        """Run a program with the files, the processes and the user of the unit; return what it printed."""
        uid = self.shows("UID")
        there = ("nsenter", "-t", str(self.unit_pid()), "-m", "-U", "-p")
        user = ("setpriv", "--reuid", uid, "--regid", self.shows("GID"), "--keep-groups")
        done = subprocess.run(
            [*there, *user, *words], check=True, capture_output=True, text=True, timeout=CALL_S
        )
        return done.stdout

    def _unit_group(self):
        return self._group / "system.slice" / "pghookd.service"

    def reach_from_unit(self, targets, seconds=1.0):
        """Return those of `(address, port)` that can be connected to by a process in the unit's control group."""
        return self._reach(self._unit_group(), targets, seconds)

    def reach_from_beside(self, targets, seconds=1.0):
        """As `reach_from_unit`, from outside the unit but on the same network."""
        return self._reach(self._group / "init.scope", targets, seconds)

    def _reach(self, group, targets, seconds):
        words = [json.dumps([list(each) for each in targets]), str(seconds)]
        done = subprocess.run(
            [
                *("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', group),
                *("nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, reach.__file__, *words),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        return {tuple(each) for each in json.loads(done.stdout)}

    # Its network ------------------------------------------------------------------------------------------------------

    def has_address(self, address):
        """Give its loopback a further address, if it has not got it."""
        length = "/128" if ":" in address else "/32"
        more = ["nodad"] if ":" in address else []
        self.call("ip", "address", "replace", address + length, "dev", "lo", *more)

    def listen(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, port=0):
        """Return a socket that listens on its network, at all addresses; without a `port` at a free one."""
        made = []
        thread = threading.Thread(target=self._listen, args=(family, kind, port, made))
        thread.start()
        thread.join()
        return made[0]

    def _listen(self, family, kind, port, made):
        """In a thread, whose network is left for the other one: a socket stays where it was made."""
        with Path(f"/proc/{self.pid}/ns/net").open() as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        listening = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(("", port))
        if kind == socket.SOCK_STREAM:
            listening.listen(64)
        made.append(listening)

    # The end ----------------------------------------------------------------------------------------------------------

    def close(self):
        """Kill all of it, and remove its control groups."""
        if self._process is not None:
            self._process.kill()  # takes the first process with it, and that one all others
            self._process.wait()
        os.close(self._slave)
        if self._listening is not None:
            self._listening.join()
        os.close(self._terminal)

    def gone(self):
        """Remove the control groups; whether that was possible: the dead take a moment."""
        return _removed(self._group)


def _removed(group):
    try:
        for each, _, _ in os.walk(group, topdown=False):
            Path(each).rmdir()
    except OSError:  # in use
        return False
    return True


def _sweep():
    """Remove the empty groups of test runs that were killed."""
    for group in _groups().glob(f"{GROUP}*"):
        if not Path(f"/proc/{group.name.removeprefix(GROUP)}").exists():
            _removed(group)


class Inside(Receiver):
    """A receiver on the network of a booted systemd."""

    def __init__(self, system, *, tls=None, **more):
        super().__init__(**more)
        self._system, self._tls = system, tls

    async def __aenter__(self):
        listening = self._system.listen()
        self._port = listening.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(self), sock=listening, ssl=self._tls
        )
        return self


class InsideMailbox(Mailbox):
    """A mail server there."""

    def __init__(self, system, **more):
        super().__init__(**more)
        self._system = system

    async def __aenter__(self):
        listening = self._system.listen()
        self.port = listening.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(self._line, sock=listening)
        return self


@contextlib.asynccontextmanager
async def naming_inside(system, table):
    """Run the name server of that network: 127.0.0.1:53."""
    listening = system.listen(kind=socket.SOCK_DGRAM, port=53)
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: LyingNameServer(table), sock=listening
    )
    try:
        yield server
    finally:
        transport.close()
