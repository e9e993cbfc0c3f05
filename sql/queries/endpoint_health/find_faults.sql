-- Faults of the platform that stop deliveries: events given up without an attempt (their type is not valid, or they are
-- too large), and endpoints whose destination the platform's own policy blocks. $1 timestamptz, $2 timestamptz: after
-- and up to when it happened; $3 int: maximum number of lines. Lives on dead_of_platform; not more than 10,000
-- deliveries.
(select d.reason, null as error, d.site_id, e.type, min(d.endpoint_id) as endpoint_id,
  count(distinct d.event_id) as events, min(d.since) as first_at,
  (array_agg(webhooks.webhook_id(d.event_id, e.created_at) order by d.event_id))[1] as webhook_id
from (
  select t.* from webhooks.dead t
  where t.reason in ('too_large', 'invalid') and t.since > $1 and t.since <= $2
    and t.event_id >= (webhooks.day_of($1) - 31)::bigint << 32
  limit 10000) d
join lateral (select v.type, v.created_at from webhooks.events v where v.event_id = d.event_id limit 1) e on true
group by d.reason, d.site_id, e.type)
union all
(select 'blocked', i.last_error, p.site_id, e.type, i.endpoint_id, 1, i.first_failure_at,
  webhooks.webhook_id(i.last_event_id, e.created_at)
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
join lateral (select v.type, v.created_at from webhooks.events v where v.event_id = i.last_event_id limit 1) e on true
where i.state = 'blocked' and i.first_failure_at > $1 and i.first_failure_at <= $2)
order by first_at, endpoint_id
limit $3
