-- One page of the difference between two snapshots, by event_id. Exact, because xid is that of the top-level
-- transaction. A walk along the primary key: none of the other conditions can use an index, and the planner, who cannot
-- know how few rows they leave, is kept from trying them by offset 0 (else it reads and sorts all days at once).
-- $1 pg_snapshot: the last read; $2 pg_snapshot: up to this one; $3 bigint: after this event_id; $4 bigint: up to
-- this one; $5 int: rows; $6 int[]: only these shards, null: all; $7 int: how many shards there are; $8 text[]: sites
-- whose events come without payload and options, since they are left in the log for a while.
select event_id, site_id, type, created_at, endpoint_id,
  case when site_id = any ($8) then null
       when pg_column_compression(payload) is null and pg_column_size(payload) <= 16384 then payload
       when octet_length(payload::text) <= 16384 then payload end as payload,
  case when num_nonnulls(traceparent, ordering_key, deliver_after, deliver_before, dedupe_key, supersede_key) > 0
    and not site_id = any ($8) then
    jsonb_strip_nulls(jsonb_build_object('traceparent', traceparent, 'ordering_key', ordering_key,
      'dedupe_key', dedupe_key, 'supersede_key', supersede_key,
      'payload_bytes', case when supersede_key is not null and (pg_column_compression(payload) is not null or pg_column_size(payload) > 16384) then octet_length(payload::text) end,
      'deliver_after', case when deliver_after > '-infinity' then extract(epoch from least(deliver_after, '9999-01-01')) end,
      'wait_s', case when deliver_after > now() then extract(epoch from least(deliver_after, '9999-01-01') - now()) end,
      'deliver_before', case when deliver_before < 'infinity' then extract(epoch from greatest(deliver_before, '1970-01-01')) end))
  end as options
from (
  select xid, event_id, site_id, type, created_at, endpoint_id, payload, traceparent, deliver_after, deliver_before, ordering_key,
    dedupe_key, supersede_key
  from webhooks.events
  where event_id > $3 and event_id <= $4
  order by event_id
  offset 0) e
where pg_visible_in_snapshot(xid, $2) and not pg_visible_in_snapshot(xid, $1)
  and ($6::int[] is null or mod(mod(hashtextextended(site_id, 0), $7) + $7, $7) = any ($6))
order by event_id
limit $5
