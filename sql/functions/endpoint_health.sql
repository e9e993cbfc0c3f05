-- View for readers: one row for each endpoint. Its url is shown in full only to a caller that may read endpoints.url.
create or replace view webhooks.endpoint_health as
select p.endpoint_id, p.site_id,
  case when (select has_column_privilege('webhooks.endpoints'::regclass, 'url', 'select')) then p.url
    else
      --include scheme_and_host
    end as url,
  p.enabled, p.disabled_reason,
  case when not p.enabled then 'disabled' else coalesce(i.state, 'healthy') end as health,
  case when i.state <> 'healthy' then i.first_failure_at end as failing_since,
  i.last_success_at, i.last_failure_at, i.last_status, i.last_error,
  b.waiting, b.parked, b.held, d.dead,
  case when p.enabled then i.disable_at end as disable_at
from webhooks.endpoints p
left join webhooks.incidents i using (endpoint_id)
cross join lateral (
  select count(*) filter (where s.state = 'waiting') as waiting, count(*) filter (where s.state = 'parked') as parked,
    count(*) filter (where s.state = 'held') as held
  from webhooks.backlog b
  cross join lateral (select
    --include delivery_state
  ) s
  where b.endpoint_id = p.endpoint_id) b
cross join lateral (select count(*) as dead from webhooks.dead where endpoint_id = p.endpoint_id) d;
comment on view webhooks.endpoint_health is
  'One row per endpoint: whether it works, since when not, and its waiting deliveries. Of the url, scheme and host '
  'unless the caller may read endpoints.url: path and query can be credentials';
