-- The mails that are due, gravest first; whether each may have been sent already (it has attempts and no error), and
-- whether nobody wants it: the owner is muted, suspended or has unsubscribed (a storm is the operator's, whom only a
-- suspension keeps from it). $1 timestamptz: now; $2 text[]: the kinds, gravest first; $3 int: rows. Lives on
-- emails_queued: few are, one for an owner at most.
select e.email_id, e.owner_email, e.kind, e.digest, e.message_id, e.attempts,
  e.attempts > 0 and e.error is null as perhaps_sent,
  coalesce(o.suspended_until > $1
    or e.kind <> 'storm' and (o.muted_until > $1 or o.unsubscribed_at is not null), false) as hushed
from webhooks.emails e
left join webhooks.owners o on o.owner_email = lower(e.owner_email)
where e.state = 'queued' and e.next_attempt_at <= $1
order by array_position($2::text[], e.kind), e.next_attempt_at, e.email_id
limit $3
