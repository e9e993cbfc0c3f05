-- The difference to the last read, in one statement with the snapshot that it was taken at: events that are visible now
-- and were not in $1. At most $4 + 1 rows of each branch, in no order; with more than $4 in all the caller reads pages.
-- $1 pg_snapshot: the last read; $2 bigint: floor of $1, for the transactions that $1 saw running; $3 bigint: front of
-- $1, for those after it; $4 int: rows.
-- The two ends -1 and 9223372036854775807 are replaced by those of the days concerned, so that a plan, made once, holds
-- the partitions of these days alone. The upper end is a guess, and checked: if newest is above it, the caller reads
-- again. Lives on events_by_xid: both branches are ordered by xid, which leaves the planner no other way.
select s.snapshot, s.in_recovery, s.newest, e.*
from (select pg_current_snapshot() as snapshot, pg_is_in_recovery() as in_recovery,
        (select last_value from webhooks.events_event_id_seq) as newest) s
left join lateral (
  (select event_id, site_id, type, created_at, endpoint_id,
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
   where event_id > -1 and event_id <= 9223372036854775807 and event_id > $3 and xid >= pg_snapshot_xmax($1)
   order by xid limit $4 + 1)
  union all
  (select event_id, site_id, type, created_at, endpoint_id,
     case when pg_column_compression(payload) is null and pg_column_size(payload) <= 16384 then payload
          when octet_length(payload::text) <= 16384 then payload end,
     case when num_nonnulls(traceparent, ordering_key, deliver_after, deliver_before, dedupe_key, supersede_key) > 0 then
       jsonb_strip_nulls(jsonb_build_object('traceparent', traceparent, 'ordering_key', ordering_key,
      'dedupe_key', dedupe_key, 'supersede_key', supersede_key,
      'payload_bytes', case when supersede_key is not null and (pg_column_compression(payload) is not null or pg_column_size(payload) > 16384) then octet_length(payload::text) end,
         'deliver_after', case when deliver_after > '-infinity' then extract(epoch from least(deliver_after, '9999-01-01')) end,
         'wait_s', case when deliver_after > now() then extract(epoch from least(deliver_after, '9999-01-01') - now()) end,
         'deliver_before', case when deliver_before < 'infinity' then extract(epoch from greatest(deliver_before, '1970-01-01')) end))
     end
   from webhooks.events
   where event_id > -1 and event_id <= 9223372036854775807 and event_id > $2
     and xid = any (array(select pg_snapshot_xip($1) except select pg_snapshot_xip(pg_current_snapshot())))
   order by xid limit $4 + 1)
) e on true
