"""`pghookd run` on a machine without an id, of any name: `python elsewhere.py HOSTNAME`, as in a container.

Never here: what follows from the name (core/home.py), other settings.
"""

from __future__ import annotations

import os
import socket
import sys

from pghookd import app
from pghookd.edge import credentials, machine


def be(hostname):
    """Let this process take the machine for one of that name."""
    socket.gethostname = lambda: hostname
    app.host_id = lambda: machine.host_id(())


if __name__ == "__main__":
    be(sys.argv[1])
    sys.exit(app.run(credentials.load(None, os.environ, None)))
