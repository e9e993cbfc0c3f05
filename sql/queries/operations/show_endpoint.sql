-- All about an endpoint but its secrets. For headers only the names, since values may be secret keys; for auth only the
-- kinds, unless it is encrypted. $1 bigint: endpoint id.
select p.endpoint_id, p.site_id, p.url, p.description, p.event_types, p.enabled, p.created_at, p.disabled_at,
  p.disabled_reason,
  case when p.secret is null then 'none' when p.secret like 'whsec\_%' then 'standard'
    when p.secret like 'whsk\_%' then 'ed25519' when p.secret like 'enc:%' then 'encrypted'
    else 'legacy' end as secret,
  case when p.previous_secret is not null then p.previous_secret_until end as previous_secret_until,
  p.snoozed_until, p.concurrency, round(p.rate_per_s::numeric, 6)::float8 as rate_per_s, p.ordered,
  p.filter::text as filter, round(p.timeout_s::numeric, 6)::float8 as timeout_s, p.retry_schedule,
  array(select name from jsonb_object_keys(p.headers) name order by name) as headers, p.success_statuses, p.profile,
  p.profile_spec,
  case jsonb_typeof(p.auth) when 'object' then
    (select string_agg(name, ', ' order by name) from jsonb_object_keys(p.auth) name)
    when 'string' then 'encrypted' end as auth,
  h.health, h.failing_since, h.last_success_at, h.last_failure_at, h.last_status, h.last_error,
  h.waiting, h.parked, h.held, h.dead, h.disable_at
from webhooks.endpoints p join webhooks.endpoint_health h using (endpoint_id)
where p.endpoint_id = $1
