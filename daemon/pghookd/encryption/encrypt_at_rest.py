"""Encrypts the secrets and auth of endpoints in the table, page by page, if in plain text or under an older key.

A row is written only if its texts are still those that were read, so that a rotation in between is never undone.

Never here: a cipher (encryption/keyring.py), a secret in a log line or report.
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
    """The progress of a key rotation.

    Attributes:
        total: number of endpoints with a secret or auth at the start.
        looked_at: number of endpoints processed so far.
        wrapped: number of endpoints whose secrets or auth were newly encrypted with the first key.
        unopened: ids of endpoints with a text that no key decrypts; these texts are not changed.
    """

    total: int = 0
    looked_at: int = 0
    wrapped: int = 0
    unopened: list[int] = dataclasses.field(default_factory=list)


async def wrap_plain(session: Session, vault: Vault) -> bool:
    """Encrypt a page of plain-text secrets; return True if there may be more."""
    rows = await session.fetch(query("find_plain_secrets"), PAGE)
    return await _wrap(session, vault, rows, []) > 0 and len(rows) == PAGE


async def rotate_key(session: Session, vault: Vault, tell: Callable[[Progress], None]) -> Progress:
    """Encrypt every secret with the vault's first key. After an interruption it can be started again.

    Args:
        session: a session outside a transaction.
        vault: the keys; the further ones decrypt existing secrets.
        tell: called with the progress after each page.
    """
    progress = Progress(total=await session.fetchval(query("count_secrets")))
    last = -(2**63)
    while rows := await session.fetch(query("find_secrets"), last, PAGE):
        last = rows[-1]["endpoint_id"]
        progress.looked_at += len(rows)
        progress.wrapped += await _wrap(session, vault, rows, progress.unopened)
        tell(progress)
    return progress


async def _wrap(session: Session, vault: Vault, rows: Sequence[Row], unopened: list[int]) -> int:
    made = [_wrapped(vault, row, unopened) for row in rows]
    changed = [row for row in made if any(row[n] != row[n + 1] for n in _SEEN)]
    if not changed:
        return 0
    done: int = await session.fetchval(query("wrap_secrets"), *columns(changed, 8))
    return done


_SEEN: Final = (1, 3, 6)  # columns of wrap_secrets with a text that was read; the new text follows each


def _wrapped(vault: Vault, row: Row, unopened: list[int]) -> tuple[object, ...]:
    """Return the columns of wrap_secrets for a row; a text that no key decrypts stays, and the others change."""
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
