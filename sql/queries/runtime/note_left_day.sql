-- Forgets a day that was removed, and records its removal. $1 int: the day; $2 text: dropped or archived.
with gone as (delete from webhooks.partitions where day = $1)
insert into webhooks.operations (what, detail)
values ('day_' || $2::text, jsonb_build_object('day', date '2020-01-01' + $1::int))
