-- The oldest deliveries of one line of an ordered endpoint, whatever their state. $1 bigint: endpoint id; $2 text: line;
-- $3 int: rows. Lives on backlog_in_line, then a step into each event's own day, as in read_due.
-- The columns "exists", payload and payload_bytes are those of read_due.
with page as materialized (
  select *, event_id / 4294967296 as day from webhooks.backlog
  where endpoint_id = $1 and line = $2
  order by event_id
  limit $3
), days as materialized (
  select d.day, (
    select count(*) = 2 from pg_inherits
    where inhrelid in (to_regclass('webhooks.attempts_' || d.day), to_regclass('webhooks.dead_' || d.day)) and not inhdetachpending) as there
  from (select distinct day from page) d
)
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at,
  case when b.state = 'waiting' then b.released_at else now() end as released_at,
  b.reason <> 'quarantined' and (b.state <> 'waiting' or b.next_attempt_at <= now()) as due,
  e.type, e.created_at, e.endpoint_id as only_endpoint_id, e.event_id is not null and (select d.there from days d where d.day = b.day) as exists,
  case when e.payload_bytes is not null and sum(e.payload_bytes) over (rows unbounded preceding) <= 100000 then e.payload end as payload,
  e.payload_bytes,
  case when num_nonnulls(e.traceparent, e.ordering_key, e.deliver_after, e.deliver_before, e.dedupe_key, e.supersede_key) > 0 then
    jsonb_strip_nulls(jsonb_build_object('traceparent', e.traceparent, 'ordering_key', e.ordering_key,
      'dedupe_key', e.dedupe_key, 'supersede_key', e.supersede_key,
      'payload_bytes', case when e.supersede_key is not null and (pg_column_compression(e.payload) is not null or pg_column_size(e.payload) > 16384) then octet_length(e.payload::text) end,
      'deliver_after', case when e.deliver_after > '-infinity' then extract(epoch from least(e.deliver_after, '9999-01-01')) end,
      'wait_s', case when e.deliver_after > now() then extract(epoch from least(e.deliver_after, '9999-01-01') - now()) end,
      'deliver_before', case when e.deliver_before < 'infinity' then extract(epoch from greatest(e.deliver_before, '1970-01-01')) end))
  end as options
from page b
left join lateral (
  select v.*, case when pg_column_compression(v.payload) is null and pg_column_size(v.payload) <= 16384
      or octet_length(v.payload::text) <= 16384 then octet_length(v.payload::text) end as payload_bytes
  from webhooks.events v where v.event_id = b.event_id limit 1) e on true
order by b.event_id
