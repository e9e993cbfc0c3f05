-- The operator's latest mails about events that cannot be sent: when mails of the last day were made, up to when the
-- latest one reports, and whether one still waits. $1 text: the operator's mailbox; $2 timestamptz: now. Lives on
-- emails_of_mailbox.
select coalesce(array_agg(e.created_at order by e.created_at), '{}') as mails,
  max((e.digest->>'at_us')::bigint) as told_us, coalesce(bool_or(e.state = 'queued'), false) as waiting
from webhooks.emails e
where e.mailbox = $1 and e.kind = 'faults' and e.created_at > $2::timestamptz - interval '1 day' and e.created_at <= $2
