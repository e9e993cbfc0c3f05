-- A page of the endpoints that have rows in backlog: whether they are enabled (null: deleted), whether they are
-- ordered, their shard, and why their oldest and newest parked or held rows are aside (null: they have no such row). $1
-- bigint: after this endpoint id; $2 int: endpoints; $3 int: number of shards. A loose walk along backlog_of_endpoint,
-- then two steps each into backlog_aside.
with recursive step(endpoint_id, n) as (
  (select endpoint_id, 1 from webhooks.backlog where endpoint_id > $1 order by endpoint_id limit 1)
  union all
  select (select b.endpoint_id from webhooks.backlog b where b.endpoint_id > step.endpoint_id
          order by b.endpoint_id limit 1), n + 1
  from step where step.endpoint_id is not null and n < $2)
select step.endpoint_id, p.enabled, p.ordered, first.reason, last.reason as newest_reason,
  webhooks.shard_of(coalesce(p.site_id, first.site_id), $3::int) as shard
from step
left join webhooks.endpoints p on p.endpoint_id = step.endpoint_id
left join lateral (
  select b.reason, b.site_id from webhooks.backlog b
  where b.endpoint_id = step.endpoint_id and b.state <> 'waiting' and b.reason <> 'quarantined'
  order by b.event_id limit 1) first on true
left join lateral (
  select b.reason from webhooks.backlog b
  where b.endpoint_id = step.endpoint_id and b.state <> 'waiting' and b.reason <> 'quarantined'
  order by b.event_id desc limit 1) last on true
where step.endpoint_id is not null
order by step.endpoint_id
