-- Events that were left in the log for a while. $1 bigint[]: ids, ascending; $2 bigint, $3 bigint: the first and the
-- last of them. Lives on the primary key; the bounds keep it to the days concerned.
select
  --include event_columns
from webhooks.events e
where e.event_id between $2 and $3 and e.event_id = any ($1)
order by e.event_id
