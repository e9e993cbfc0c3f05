-- Where the pages of a long difference begin: an id below which the difference has no event. $1 pg_snapshot: the last
-- read; $2 pg_snapshot: this one; $3 bigint: floor of $1; $4 bigint: front of $1. Lives on events_by_xid for the
-- transactions that have ended between the two.
select least($4::bigint, (
  select min(event_id) - 1 from (
    select event_id from webhooks.events
    where event_id > $3 and xid = any (array(select pg_snapshot_xip($1) except select pg_snapshot_xip($2)))
    offset 0) e))  -- offset 0: else the planner searches the minimum along the primary key
