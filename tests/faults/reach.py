"""Tries to connect, as a process of its own: whose network and control group it has, its starter has decided.

`python reach.py '[["127.0.0.1", 80], ...]' SECONDS` prints those that a connection could be made to. Never here:
sending anything.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time


def reachable(targets, seconds):
    """Connect to all `(address, port)` at once; return those that worked."""
    selector = selectors.DefaultSelector()
    for address, port in targets:
        family, _, _, _, full = socket.getaddrinfo(address, port, flags=socket.AI_NUMERICHOST)[0]
        trying = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            trying.connect(full)  # with its zone as a number
        except BlockingIOError:
            selector.register(trying, selectors.EVENT_WRITE, (address, port))
        except OSError:
            trying.close()
    reached = []
    end = time.monotonic() + seconds
    while selector.get_map() and (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            selector.unregister(key.fileobj)
            if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                reached.append(key.data)
    return reached


if __name__ == "__main__":
    print(json.dumps(reachable([tuple(each) for each in json.loads(sys.argv[1])], float(sys.argv[2]))))
