-- The endpoints of some sites, read after their events: one that was committed before an event is always seen.
-- $1 text[]: site ids; $2 int: how many shards there are; $3 bigint[], $4 bigint[]: per site, after which endpoint id and
-- up to which; $5 int: endpoints of one site, the first by id. Lives on endpoints_of_site, a step for each site.
select p.endpoint_id, p.site_id, mod(mod(hashtextextended(p.site_id, 0), $2) + $2, $2)::int as shard, p.url, p.event_types,
  p.enabled, p.from_event_id, p.secret, s.url as source, p.concurrency, p.timeout_s,
  case when p.headers <> '{}' or p.profile <> 'standard' or p.previous_secret_until > now()
      or num_nonnulls(p.retry_schedule, p.success_statuses, p.filter, p.rate_per_s, nullif(p.ordered, false), p.auth) > 0 then
    jsonb_strip_nulls(jsonb_build_object(
      'retry_schedule', p.retry_schedule, 'headers', nullif(p.headers, '{}')::text,
      'success_statuses', p.success_statuses, 'filter', p.filter::text, 'rate_per_s', p.rate_per_s,
      'ordered', nullif(p.ordered, false), 'profile', nullif(p.profile, 'standard'), 'profile_spec', p.profile_spec::text,
      'auth', p.auth #>> '{}',
      'previous_secret', case when p.previous_secret_until > now() then p.previous_secret end,
      'previous_until_s', case when p.previous_secret_until > now() then extract(epoch from p.previous_secret_until) end))
  end as options
from unnest($1::text[], $3::bigint[], $4::bigint[]) i(site_id, after, upto)
cross join lateral (
  select * from webhooks.endpoints
  where site_id = i.site_id and endpoint_id > i.after and endpoint_id <= i.upto
  order by endpoint_id
  limit $5) p
cross join lateral (select * from webhooks.sites where site_id = i.site_id limit 1) s
