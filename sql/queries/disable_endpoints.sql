-- Switches endpoints off because of what their receivers said; their rows in backlog are held by what follows (hold_backlog).
-- $1 bigint[]: endpoint ids; $2 text[]: reasons. Returns those that were on.
update webhooks.endpoints p set enabled = false, disabled_reason = u.reason
from unnest($1::bigint[], $2::text[]) as u(endpoint_id, reason)
where p.endpoint_id = u.endpoint_id and p.enabled
returning p.endpoint_id, p.site_id, p.disabled_reason
