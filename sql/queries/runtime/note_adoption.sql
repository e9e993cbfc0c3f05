-- Records that the database was adopted. $1 bigint: deliveries queued; $2 bool: whether the backlog was skipped.
insert into webhooks.operations (what, detail)
values ('adopt', jsonb_build_object('queued', $1::bigint, 'skip_backlog', $2::bool))
