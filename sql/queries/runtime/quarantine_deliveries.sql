-- Holds deliveries of which one crashes the daemon, if they are not settled yet. $1 bigint[]: events; $2 bigint[]:
-- endpoints. Returns those that are held. Lives on the primary keys.
insert into webhooks.backlog as b (event_id, endpoint_id, site_id, state, reason, cause, attempts)
select s.event_id, s.endpoint_id, e.site_id, 'held', 'quarantined', 'recovery',
  coalesce((select max(a.attempt) from webhooks.attempts a where a.event_id = s.event_id and a.endpoint_id = s.endpoint_id), 0)
from unnest($1::bigint[], $2::bigint[]) s (event_id, endpoint_id)
join webhooks.events e on e.event_id = s.event_id
where exists (select from webhooks.backlog o where o.event_id = s.event_id and o.endpoint_id = s.endpoint_id)
  or not exists (select from webhooks.dead d where d.event_id = s.event_id and d.endpoint_id = s.endpoint_id)
    and not exists (select from webhooks.attempts a
      where a.event_id = s.event_id and a.endpoint_id = s.endpoint_id and a.outcome = 'delivered')
on conflict (event_id, endpoint_id) do update
set state = 'held', reason = 'quarantined', next_attempt_at = null, since = now()
returning b.event_id, b.endpoint_id, b.site_id
