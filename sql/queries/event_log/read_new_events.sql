-- The difference to the last read, in one statement with the snapshot that it was taken at: events that are visible now
-- and were not in $1. At most $4 + 1 rows of each branch, in no order; with more than $4 in all the caller reads pages.
-- $1 pg_snapshot: the last read; $2 bigint: floor of $1, for the transactions that $1 saw running; $3 bigint: front of
-- $1, for those after it; $4 int: rows.
-- {lower} and {upper} are the ends of the days concerned, written into the text, so that a plan, made once, holds the
-- partitions of these days alone. The upper end is a guess, and checked: if newest is above it, the caller reads again.
-- Lives on events_by_xid: both branches are ordered by xid, which leaves the planner no other way.
select s.snapshot, s.in_recovery, s.newest, e.*
from (select pg_current_snapshot() as snapshot, pg_is_in_recovery() as in_recovery,
        (select last_value from webhooks.events_event_id_seq) as newest) s
left join lateral (
  (select
     --include event_columns
   from webhooks.events e
   where e.event_id > {lower} and e.event_id <= {upper} and e.event_id > $3 and e.xid >= pg_snapshot_xmax($1)
   order by e.xid limit $4 + 1)
  union all
  (select
     --include event_columns
   from webhooks.events e
   where e.event_id > {lower} and e.event_id <= {upper} and e.event_id > $2
     and e.xid = any (array(select pg_snapshot_xip($1) except select pg_snapshot_xip(pg_current_snapshot())))
   order by e.xid limit $4 + 1)
) e on true
