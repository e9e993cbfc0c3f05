-- View for readers: each delivery that has a row, one row for each event and endpoint. Backlog goes before dead, and
-- dead before the latest delivered attempt.
-- needs: webhook_id
create or replace view webhooks.deliveries as
with stands as (
  select b.event_id, b.endpoint_id, b.site_id, s.state, s.reason, b.attempts, s.next_attempt_at
  from webhooks.backlog b
  left join webhooks.endpoints p on p.endpoint_id = b.endpoint_id
  cross join lateral (select
    --include delivery_state
  ) s
  union all
  select d.event_id, d.endpoint_id, d.site_id, 'dead', d.reason, d.attempts, null from webhooks.dead d
  where not exists (select from webhooks.backlog b where b.event_id = d.event_id and b.endpoint_id = d.endpoint_id)
  union all
  select a.event_id, a.endpoint_id, a.site_id, 'delivered', null, a.attempt, null from webhooks.attempts a
  where a.outcome = 'delivered'
    and not exists (select from webhooks.attempts l where l.event_id = a.event_id and l.endpoint_id = a.endpoint_id
                    and l.outcome = 'delivered' and l.attempt > a.attempt)
    and not exists (select from webhooks.backlog b where b.event_id = a.event_id and b.endpoint_id = a.endpoint_id)
    and not exists (select from webhooks.dead d where d.event_id = a.event_id and d.endpoint_id = a.endpoint_id)
)
select s.event_id, webhooks.webhook_id(e.event_id, e.created_at) as webhook_id, s.endpoint_id, s.site_id, e.type, e.subject,
  s.state, s.reason, s.attempts, e.created_at, l.attempted_at as last_attempt_at, l.outcome as last_outcome,
  l.status as last_status, l.error as last_error, s.next_attempt_at
from stands s
left join webhooks.events e on e.event_id = s.event_id
left join lateral (
  select t.attempted_at, t.outcome, t.status, t.error from webhooks.attempts t
  where t.event_id = s.event_id and t.endpoint_id = s.endpoint_id order by t.attempt desc limit 1) l on true;
comment on view webhooks.deliveries is
  'One row per event and endpoint that was settled: its state and its last attempt';
