-- The columns of endpoint p and its site s, with the shard of $2 shards. Options that are seldom set are one JSON
-- object; null if none is set.
p.endpoint_id, p.site_id, webhooks.shard_of(p.site_id, $2) as shard, p.url, p.event_types, p.enabled, p.from_event_id,
p.revision, p.secret, s.url as source, p.concurrency, p.timeout_s,
case when p.headers <> '{}' or p.profile <> 'standard' or p.previous_secret_until > now()
    or num_nonnulls(p.retry_schedule, p.success_statuses, p.filter, p.rate_per_s, nullif(p.ordered, false), p.auth) > 0
  then jsonb_strip_nulls(jsonb_build_object(
    'retry_schedule', p.retry_schedule, 'headers', nullif(p.headers, '{}')::text,
    'success_statuses', p.success_statuses, 'filter', p.filter::text, 'rate_per_s', p.rate_per_s,
    'ordered', nullif(p.ordered, false), 'profile', nullif(p.profile, 'standard'), 'profile_spec', p.profile_spec::text,
    'auth', p.auth #>> '{}',
    'previous_secret', case when p.previous_secret_until > now() then p.previous_secret end,
    'previous_until_s', case
      when p.previous_secret_until > now() then extract(epoch from p.previous_secret_until) end))
end as options
