"""Runs a command of pghookd as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass


@dataclass
class Done:
    status: int
    out: str
    err: str

    @property
    def told(self):
        return json.loads(self.out)


async def command(*words, url, stdin=b"", **variables):
    """Run a command on a database; further arguments are environment variables. A traceback fails the test."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PGHOOKD_", "PG"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pghookd", *map(str, words),
        env=environ | {"PGHOOKD_DATABASE_URL": url} | variables,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())
