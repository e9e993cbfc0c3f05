"""Encrypts secrets of endpoints, and auth, where they lie, page by page: those in plain text, or under an older key.

A row is only written while it holds the very texts that were read, so that a rotation in between is never undone.

Never here: a cipher (encryption/keyring.py), and a secret in anything that is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from pghookd.encryption.ciphertext import AUTH, SECRET, Unopened, is_sealed, kind_of
from pghookd.encryption.keyring import Vault
from pghookd.postgres.client import Row, Session, columns, query

PAGE: Final = 200  # endpoints


@dataclasses.dataclass(slots=True)
class Progress:
    """How far a rotation of the key is.

    Attributes:
        total: endpoints with a secret or auth when it began.
        looked_at: of them so far.
        wrapped: whose secrets or auth were not under the first key, and are now.
        unopened: those that no key opens; they are left as they are.
    """

    total: int = 0
    looked_at: int = 0
    wrapped: int = 0
    unopened: list[int] = dataclasses.field(default_factory=list)


async def wrap_plain(session: Session, vault: Vault) -> bool:
    """Encrypt a page of secrets in plain text; whether there may be more."""
    rows = await session.fetch(query("find_plain_secrets"), PAGE)
    return await _wrap(session, vault, rows, []) > 0 and len(rows) == PAGE


async def rotate_key(session: Session, vault: Vault, tell: Callable[[Progress], None]) -> Progress:
    """Bring every secret under the vault's first key. What was interrupted goes on where it is begun again.

    Args:
        session: in no transaction.
        vault: its further keys open what is there.
        tell: is called after each page.
    """
    progress = Progress(total=await session.fetchval(_COUNT))
    last = -(2**63)
    while rows := await session.fetch(query("find_secrets"), last, PAGE):
        last = rows[-1]["endpoint_id"]
        progress.looked_at += len(rows)
        progress.wrapped += await _wrap(session, vault, rows, progress.unopened)
        tell(progress)
    return progress


_COUNT: Final = (
    "select count(*) from webhooks.endpoints where num_nonnulls(secret, previous_secret, auth) > 0"
)


async def _wrap(session: Session, vault: Vault, rows: Sequence[Row], unopened: list[int]) -> int:
    made = [_wrapped(vault, row, unopened) for row in rows]
    changed = [row for row in made if any(row[n] != row[n + 1] for n in _SEEN)]
    if not changed:
        return 0
    done: int = await session.fetchval(query("wrap_secrets"), *columns(changed, 8))
    return done


_SEEN: Final = (1, 3, 6)  # where the columns of wrap_secrets hold what was seen, before what it became


def _wrapped(vault: Vault, row: Row, unopened: list[int]) -> tuple[object, ...]:
    """Return the columns of wrap_secrets for a row; what no key opens stays, and keeps nothing else from it."""
    endpoint_id, secret = row["endpoint_id"], row["secret"]
    made: list[object] = [endpoint_id]
    for name, purpose in _TEXTS.items():
        sealed = row[name]
        try:
            sealed = vault.resealed(sealed, endpoint_id, purpose)
        except Unopened:
            if unopened[-1:] != [endpoint_id]:
                unopened.append(endpoint_id)
        made += [row[name], sealed]
    kind = row["secret_kind"] if secret is None or is_sealed(secret) else kind_of(secret)
    return *made[:5], kind, *made[5:]


_TEXTS: Final = {"secret": SECRET, "previous_secret": SECRET, "auth": AUTH}
