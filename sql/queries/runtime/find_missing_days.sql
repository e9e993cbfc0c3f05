-- Days whose partitions are not attached and noted yet. $1 int: the first day, as webhooks.day_of() counts them;
-- $2 int: how many days.
select d as day from generate_series($1::int, $1::int + $2::int - 1) d
where not exists (select from webhooks.partitions p where p.day = d)
order by d
