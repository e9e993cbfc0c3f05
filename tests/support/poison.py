"""`pghookd run` that some requests end at once, as a fault in C code or the kernel would: those that hold POISON."""

from __future__ import annotations

import os
import signal
import sys

from pghookd.egress import sender
from pghookd.runtime import app
from pghookd.settings import load

POISON = b"take me down"


class Fragile(sender.Sender):
    async def post(self, target, head, body, timeout_s):
        if POISON in body:
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().post(target, head, body, timeout_s)


def fragile(settings):
    made = app.sender_of(settings)
    made.__class__ = Fragile
    return made


if __name__ == "__main__":
    sys.exit(app.run(load.load(None, os.environ, None), make_sender=fragile))
