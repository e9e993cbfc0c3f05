-- Disables endpoints because of an answer of their receivers. hold_backlog holds their rows in backlog afterwards. $1
-- bigint[]: endpoint ids; $2 text[]: reasons. Returns those that were enabled; `locked` is true if the row is locked:
-- it stays as it is, and nothing waits. Lives on the primary key.
with u as materialized (
  select * from unnest($1::bigint[], $2::text[]) as u(endpoint_id, reason)
), free as materialized (
  select p.endpoint_id from u join webhooks.endpoints p using (endpoint_id)
  where p.enabled
  for no key update of p skip locked
), off as (
  update webhooks.endpoints p set enabled = false, disabled_reason = u.reason
  from free join u using (endpoint_id)
  where p.endpoint_id = free.endpoint_id
  returning p.endpoint_id, p.site_id, p.disabled_reason
)
select endpoint_id, site_id, disabled_reason, false as locked from off
union all
select p.endpoint_id, p.site_id, null, true from u join webhooks.endpoints p using (endpoint_id)
where p.enabled and p.endpoint_id not in (select endpoint_id from free)
