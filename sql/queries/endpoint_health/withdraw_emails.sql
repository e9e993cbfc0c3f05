-- Withdraws unsent mails about a site that has another owner by now. The incidents are as they were before, so that the
-- new owner is notified. $1 timestamptz: now; $2 bigint: the mail that is being sent, which stays (null: no mail is).
-- Lives on emails_queued, which has few rows.
with moved as (
  update webhooks.emails e set state = 'superseded', next_attempt_at = null
  where e.state = 'queued' and e.email_id is distinct from $2 and exists (
    select from jsonb_path_query(e.digest, 'lax $.sections[*].site_id') x
    join webhooks.sites s on s.site_id = x #>> '{}'
    where lower(s.owner_email) is distinct from lower(e.owner_email))
  returning e.before)
update webhooks.incidents i set state = b.value->>'state', next_look_at = least(i.next_look_at, $1),
  marks = (b.value->'marks') || case when (b.value->>'owed')::bool then '{"owed": true}'::jsonb else '{}'::jsonb end
from moved m, jsonb_each(m.before) b
where i.endpoint_id = b.key::bigint and i.state <> 'healthy'
returning i.endpoint_id
