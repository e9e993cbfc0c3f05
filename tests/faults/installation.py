"""The shell blocks of systemd/README.md, run as they are written, in a booted systemd with a local Postgres.

Never here: a second way to install. `SUBSTITUTIONS` lists all that is changed in a block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import booted

from pghookd.cli.devtools import embedded_postgres

GUIDE = booted.ROOT / "systemd" / "README.md"
PASSWORD = "another-unlikely-password"
SUBSTITUTIONS = {
    # There is no network for what pghookd depends on: it comes from the environment of the tests.
    "/opt/pghookd/bin/pip install .": (
        "/opt/pghookd/bin/pip install --quiet --no-index --no-deps /opt/wheel/*.whl\n"
        "echo /opt/packages >$(echo /opt/pghookd/lib/python3*/site-packages)/lent.pth"
    ),
    # As the guide asks: "Insert the password of step 4."
    "pghookd:PASSWORD@": f"pghookd:{PASSWORD}@",
}

# As Debian sets it up: the socket and its owner, `peer` for the socket, passwords for TCP.
_POSTGRES = """
[Service]
Type=forking
User=postgres
StandardOutput=tty
RuntimeDirectory=postgresql
Environment=PGDATA=/run/postgresql/data
ExecStartPre={programs}/initdb -U postgres -E utf8 --locale=C.UTF-8 --auth-local=peer --auth-host=scram-sha-256
ExecStart={programs}/pg_ctl start -w -o "-k /run/postgresql -c listen_addresses=localhost -c fsync=off"
"""
_SUDO = """#!/bin/sh
# sudo -u USER COMMAND...
user=$2
shift 2
exec setpriv --reuid="$user" --regid="$user" --init-groups env -i PATH="$PATH" "$@"
"""
_PSQL = """#!/bin/sh
PGHOST=/run/postgresql exec {programs}/psql "$@"
"""


def block(title):
    """Return the one shell block of a section of the guide."""
    section = GUIDE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"(?ms)^```sh\n(.*?)^```$", section)
    return found


def prepare(system):
    """Give a booted systemd what the guide expects: the checkout, `psql`, `sudo`, and a Postgres with `app`.

    Stand-ins: `psql` of the embedded Postgres, `sudo` of a few lines, where the machine lacks them.
    """
    purelib = sysconfig.get_path("purelib")
    programs = Path("/opt/packages") / embedded_postgres._binaries().relative_to(purelib)
    system.call("systemd-sysusers", "--inline", "u postgres -")
    system.write(f"{booted.UNITS}/postgresql.service", _POSTGRES.format(programs=programs))
    has_psql = shutil.which("psql")
    if not has_psql:
        system.write("/opt/stand-ins/psql", _PSQL.format(programs=programs), 0o755)
    if not has_psql or not shutil.which("sudo"):  # a real `sudo` has a PATH of its own, without a stand-in
        system.write("/opt/stand-ins/sudo", _SUDO, 0o755)
    system.call("systemctl", "daemon-reload")
    system.call("systemctl", "start", "postgresql.service")
    run(system, "sudo -u postgres psql -q -c 'create database app'")


def run(system, script, given=""):
    """Run a script as root would at a shell, in the checkout, until its first failure; return what it printed.

    It has no terminal, so that programs which prompt for a password read it from standard input.
    """
    path = f"PATH=/opt/python/bin:/opt/stand-ins:{os.environ['PATH']}"
    words = ("setsid", "--wait", "env", "-i", path, "HOME=/tmp", "sh", "-eux", "-c")
    return system.call(*words, f"cd /opt/checkout\n{script}", given=given).stdout


def install(system):
    """Do all of "Install"; return what it printed."""
    _wheel(system)
    script = block("Install")
    for written, substitute in SUBSTITUTIONS.items():
        assert script.count(written) == 1, written
        script = script.replace(written, substitute)
    return run(system, script, given=f"{PASSWORD}\n{PASSWORD}\n")


def _wheel(system):
    """Build what `pip install .` builds; the tests' environment has what that takes."""
    subprocess.run(
        [
            *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
            *("--outdir", system.file("/opt/wheel"), booted.ROOT),
        ],
        check=True,
        capture_output=True,
        timeout=booted.CALL_S,
    )


def uninstall(system):
    """Do all of "Uninstall"."""
    return run(system, block("Uninstall"))
