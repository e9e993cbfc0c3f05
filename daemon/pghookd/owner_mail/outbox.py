"""The outbox: stores a digest as a row of `emails`, with the mailbox and domain by which limits are counted.

Never here: the decision to send a mail (endpoint_health), sending (owner_mail/mailer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pghookd.owner_mail.digest import Digest
from pghookd.owner_mail.mailbox import domain_of, mailbox_of
from pghookd.postgres.client import Session, query


async def put_email(
    session: Session,
    digest: Digest,
    *,
    window_us: int,
    now_us: int,
    before: Mapping[str, Any] | None = None,
    state: str = "queued",
) -> int | None:
    """Put a mail into the outbox; return its email_id, or None if one of this kind and window already exists.

    Args:
        session: the caller's session, in a transaction or not.
        digest: the mail's content.
        window_us: start of the window that it covers, microseconds since 1970; one mail per kind and window.
        now_us: creation time.
        before: the incidents as they were before the mail, by endpoint.
        state: queued or suppressed.
    """
    owner = digest.owner_email
    found: int | None = await session.fetchval(
        query("put_email"),
        owner,
        digest.kind.value,
        window_us,
        orjson.dumps(digest).decode(),
        orjson.dumps(before or {}).decode(),
        state,
        now_us,
        mailbox_of(owner),
        domain_of(owner),
    )
    return found
