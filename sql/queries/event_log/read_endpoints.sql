-- Endpoints by id: for due rows, and for queued work whose endpoint may have changed.
-- $1 bigint[]: endpoint ids, each once; $2 int: how many shards there are. Lives on the primary key, a step for each id:
-- where the table was empty when the plan was made, "= any" would compare every endpoint with every id.
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
from unnest($1::bigint[]) i
cross join lateral (select * from webhooks.endpoints where endpoint_id = i limit 1) p
cross join lateral (select * from webhooks.sites where site_id = p.site_id limit 1) s
