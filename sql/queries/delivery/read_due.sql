-- A page of deliveries whose time has come, from where the last page ended. $1 timestamptz, $2 bigint, $3 bigint: the
-- last row seen; $4 int: rows. Lives on backlog_due, then a step into the primary key of each event's own day: joined
-- plainly, the planner adds up a step into every day and reads all events instead.
-- "exists": the event is there, and so are the partitions in which its attempts and its end would be recorded. Payloads come
-- along up to 100,000 bytes in all; those of at most 16 KB beyond that are loaded apart (load_payloads), by payload_bytes.
with page as materialized (
  select *, event_id / 4294967296 as day from webhooks.backlog
  where state = 'waiting' and next_attempt_at <= now() and (next_attempt_at, event_id, endpoint_id) > ($1, $2, $3)
  order by next_attempt_at, event_id, endpoint_id
  limit $4
), days as materialized (
  select d.day, (
    select count(*) = 2 from pg_inherits
    where inhrelid in (to_regclass('webhooks.attempts_' || d.day), to_regclass('webhooks.dead_' || d.day)) and not inhdetachpending) as there
  from (select distinct day from page) d
)
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at, b.released_at, b.line,
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
order by b.next_attempt_at, b.event_id, b.endpoint_id
