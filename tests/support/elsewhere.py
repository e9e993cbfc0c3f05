"""`pghookd run` on a machine without an id, of any name: `python elsewhere.py HOSTNAME`, as in a container.

Never here: conclusions from the name (event_log/identity.py), other settings.
"""

from __future__ import annotations

import os
import socket
import sys

from pghookd.process import host_id
from pghookd.runtime import app
from pghookd.settings import load


def be(hostname):
    """Make this process believe that the machine has that name."""
    socket.gethostname = lambda: hostname
    app.host_id = lambda: host_id.host_id(())


if __name__ == "__main__":
    be(sys.argv[1])
    sys.exit(app.run(load.load(None, os.environ, None)))
