"""The Unix user of this process, for records of its acts.

Never here: rights, which Postgres judges by the role of the session.
"""

from __future__ import annotations

import os
import pwd


def unix_user() -> str:
    """Return the name of the user; `anna as pghookd` if sudo says that anna runs the process."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run as a number
        name = str(uid)
    behind = os.environ.get("SUDO_USER", name)
    return name if behind == name else f"{behind} as {name}"
