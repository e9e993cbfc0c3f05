-- The oldest deliveries of one line of an ordered endpoint, whatever their state. $1 bigint: endpoint id; $2 text: line;
-- $3 int: rows. Lives on backlog_in_line, then a step into each event's own day, as in read_due.
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at,
  case when b.state = 'waiting' then b.released_at else now() end as released_at,
  b.reason <> 'quarantined' and (b.state <> 'waiting' or b.next_attempt_at <= now()) as due,
  e.type, e.created_at, e.endpoint_id as only_endpoint_id, e.event_id is not null as exists,
  case when pg_column_compression(e.payload) is null and pg_column_size(e.payload) <= 16384 then e.payload
       when octet_length(e.payload::text) <= 16384 then e.payload end as payload,
  case when num_nonnulls(e.traceparent, e.ordering_key, e.deliver_after, e.deliver_before, e.dedupe_key, e.supersede_key) > 0 then
    jsonb_strip_nulls(jsonb_build_object('traceparent', e.traceparent, 'ordering_key', e.ordering_key,
      'dedupe_key', e.dedupe_key, 'supersede_key', e.supersede_key,
      'payload_bytes', case when e.supersede_key is not null and (pg_column_compression(e.payload) is not null or pg_column_size(e.payload) > 16384) then octet_length(e.payload::text) end,
      'deliver_after', case when e.deliver_after > '-infinity' then extract(epoch from least(e.deliver_after, '9999-01-01')) end,
      'wait_s', case when e.deliver_after > now() then extract(epoch from least(e.deliver_after, '9999-01-01') - now()) end,
      'deliver_before', case when e.deliver_before < 'infinity' then extract(epoch from greatest(e.deliver_before, '1970-01-01')) end))
  end as options
from (
  select * from webhooks.backlog
  where endpoint_id = $1 and line = $2
  order by event_id
  limit $3) b
left join lateral (select * from webhooks.events where event_id = b.event_id limit 1) e on true
order by b.event_id
