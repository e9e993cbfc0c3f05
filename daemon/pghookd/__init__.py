"""pghookd: webhooks from a Postgres table.

The version is the installed distribution's; nothing else lives here, so that `--version` stays quick.
"""

from importlib.metadata import version

__version__ = version("pghookd")
