"""What must hold of mails after any story: the outbox against what the mail server took."""

from __future__ import annotations

import collections

from checker import Findings


async def check_mails(db, accepted, *, repeats_max):
    """Hold the outbox against the mails that were accepted.

    Args:
        db: a connection.
        accepted: the server's mails that it said 250 to.
        repeats_max: how many came again because a kill or a cut stood between the 250 and the row.

    Raises:
        BrokenError: `mails` does not hold.
    """
    findings = Findings()
    rows = await db.fetch("select email_id, message_id, state from webhooks.emails")
    came = collections.Counter(mail.message_id for mail in accepted)
    for row in rows:
        taken = row["state"] != "sent" or came[row["message_id"]] > 0
        findings.hold("mails", taken, f"{row} never came")
    strangers = came.keys() - {row["message_id"] for row in rows}
    findings.hold("mails", not strangers, f"nobody wrote {strangers}")
    repeats = came.total() - len(came)
    findings.hold("mails", repeats <= repeats_max, f"{repeats} came again")
    findings.done()
