-- Records that a day of the archive was dropped. $1 int: the day, as webhooks.day_of() counts days.
insert into webhooks.operations (what, detail)
values ('archive_dropped', jsonb_build_object('day', date '2020-01-01' + $1::int))
