"""The advisory locks of pghookd: one class, and a key for each purpose.

SQL cannot name a constant. A file of `sql/` that uses one of these keys names it in its head, as `Lock: BELL (class,
key)`; a test compares the head with this module.
"""

from __future__ import annotations

from typing import Final

CLASS: Final = 1_885_825_131

BELL: Final = 0  # held exclusively by a sleeping daemon; each producer tries it, shared
MIGRATE: Final = -1  # held by `pghookd migrate`
BELL_KEEPER: Final = -2  # held by the daemon that may sleep
MAINTENANCE: Final = -3  # held while partitions are made and the sequence enters a day
# The keys above 0 belong to the shards (lock_shard.sql).

TRY: Final = f"select pg_try_advisory_lock({CLASS}, $1)"
WAIT: Final = f"select pg_advisory_lock({CLASS}, $1)"
RELEASE: Final = f"select pg_advisory_unlock({CLASS}, $1)"
RELEASE_ALL: Final = "select pg_advisory_unlock_all()"
