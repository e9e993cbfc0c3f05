-- Days from today on, $1 of them, whose partitions are not attached and noted yet.
select d as day from generate_series(webhooks.day_of(), webhooks.day_of() + $1::int - 1) d
where not exists (select from webhooks.partitions p where p.day = d)
