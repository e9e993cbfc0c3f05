-- The mails that owners got lately, and whether they want mails. $1 text[]: owners, in lower case; $2 timestamptz: now;
-- $3 text[]: their mailboxes. Mails to any spelling of a mailbox count. The spelling that had its first mail is counted
-- by itself, so that nobody silences an owner with other spellings. Lives on emails_of_mailbox and emails_of_owner.
select u.owner_email, o.muted_until, o.suspended_until, o.unsubscribed_at, o.unsubscribe_token,
  coalesce(m.mails, '{}') as mails, q.email_id as queued_id, q.created_at as queued_at,
  coalesce(q.attempts > 0 and q.error is null, false) as perhaps_sent, q.before
from unnest($1::text[], $3::text[]) as u(owner_email, mailbox)
left join webhooks.owners o using (owner_email)
left join lateral (
  select e.owner_email from webhooks.emails e
  where e.mailbox = u.mailbox and e.kind not in ('storm', 'faults') order by e.created_at, e.email_id limit 1) f on true
left join lateral (
  select array_agg(e.created_at order by e.created_at) as mails from webhooks.emails e
  where e.mailbox = u.mailbox and e.kind not in ('storm', 'faults') and e.state in ('queued', 'sent', 'suppressed')
    and (e.owner_email = u.owner_email or f.owner_email is distinct from u.owner_email)
    and e.created_at > $2::timestamptz - interval '1 day' and e.created_at <= $2) m on true
left join lateral (
  select * from webhooks.emails e
  where e.owner_email = u.owner_email and e.kind not in ('storm', 'faults') and e.state = 'queued'
  order by e.created_at desc limit 1) q on true
