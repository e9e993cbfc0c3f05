-- Events that were left in the log for a while. $1 bigint[]: ids, ascending; $2 bigint, $3 bigint: the first and the last
-- of them. Lives on the primary key; the bounds keep it to the days concerned.
select event_id, site_id, type, created_at, endpoint_id,
  case when pg_column_compression(payload) is null and pg_column_size(payload) <= 16384 then payload
       when octet_length(payload::text) <= 16384 then payload end as payload,
  case when num_nonnulls(traceparent, ordering_key, deliver_after, deliver_before, dedupe_key, supersede_key) > 0 then
    jsonb_strip_nulls(jsonb_build_object('traceparent', traceparent, 'ordering_key', ordering_key,
      'dedupe_key', dedupe_key, 'supersede_key', supersede_key,
      'payload_bytes', case when supersede_key is not null and (pg_column_compression(payload) is not null or pg_column_size(payload) > 16384) then octet_length(payload::text) end,
      'deliver_after', case when deliver_after > '-infinity' then extract(epoch from least(deliver_after, '9999-01-01')) end,
      'wait_s', case when deliver_after > now() then extract(epoch from least(deliver_after, '9999-01-01') - now()) end,
      'deliver_before', case when deliver_before < 'infinity' then extract(epoch from greatest(deliver_before, '1970-01-01')) end))
  end as options
from webhooks.events
where event_id between $2 and $3 and event_id = any ($1)
order by event_id
