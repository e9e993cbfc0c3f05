-- Deliveries given up. $1.. arrays: event_id, endpoint_id, site_id, reason, attempts.
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::smallint[])
on conflict do nothing
