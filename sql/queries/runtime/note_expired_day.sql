-- Records that the deliveries of a day that were still unsettled were given up. $1 int: the day; $2 bigint: how many.
insert into webhooks.operations (what, detail)
values ('day_expired', jsonb_build_object('day', date '2020-01-01' + $1::int, 'deliveries', $2::bigint))
