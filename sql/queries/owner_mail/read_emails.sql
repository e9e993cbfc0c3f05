-- The mails that are due, by turns of domains and the gravest first within a turn; whether each may have been sent already
-- (it has attempts and no error); whether nobody wants it: the owner is muted, suspended or has unsubscribed (the
-- operator's kinds are kept back by a suspension alone); and whether it speaks of a site that has another owner by now.
-- $1 timestamptz: now; $2 text[]: the kinds, gravest first; $3 int: rows; $4 text[]: domains that have to wait;
-- $5 text[]: the operator's kinds, which wait for no domain. Lives on emails_queued: few are, one for an owner at most.
with due as (
  select e.email_id, row_number() over (
    partition by e.mail_domain order by array_position($2::text[], e.kind), e.next_attempt_at, e.email_id) as turn
  from webhooks.emails e
  where e.state = 'queued' and e.next_attempt_at <= $1 and (e.mail_domain <> all ($4::text[]) or e.kind = any ($5::text[])))
select e.email_id, e.owner_email, e.mail_domain, e.kind, e.digest, e.message_id, e.attempts,
  e.attempts > 0 and e.error is null as perhaps_sent,
  coalesce(o.suspended_until > $1
    or e.kind <> all ($5::text[]) and (o.muted_until > $1 or o.unsubscribed_at is not null), false) as hushed,
  exists (
    select from jsonb_path_query(e.digest, 'lax $.sections[*].site_id') x
    join webhooks.sites s on s.site_id = x #>> '{}'
    where e.kind <> all ($5::text[]) and lower(s.owner_email) is distinct from lower(e.owner_email)) as moved
from due d
join webhooks.emails e using (email_id)
left join webhooks.owners o on o.owner_email = lower(e.owner_email)
order by d.turn, array_position($2::text[], e.kind), e.next_attempt_at, e.email_id
limit $3
