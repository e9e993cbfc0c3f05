"""Shared by tests: servers, receivers and producers to run against, daemons as processes, and their checkers."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).parent
FOUND = os.environ | {"PYTHONPATH": str(SUPPORT.parent)}  # environment of a script that imports from here
