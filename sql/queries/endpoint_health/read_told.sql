-- The content of a mail about one endpoint: the deliveries that failed since its incident began, by type and by end.
-- Includes deliveries that were not tried because the endpoint's filter is slow. $1 bigint: endpoint id; $2
-- timestamptz: when it began; $3 timestamptz: failures up to here are reported already; $4 timestamptz: now.
-- A delivery is reported by the mail that follows the end of its first failed attempt, unless it has been delivered
-- since. A delivery that was in flight when a mail was made is reported by the next one. Deliveries that people gave up
-- are not counted as given up by us. Lives on attempts_of_endpoint, and on the primary keys of each event's day;
-- not more than 50,000 deliveries.
with failed as (
  select event_id from (
    select distinct t.event_id from webhooks.attempts t
    where t.endpoint_id = $1 and t.outcome <> 'delivered' and t.outcome <> 'failed'
      and t.event_id >= (webhooks.day_of($2) - 31)::bigint << 32 and t.attempted_at >= $2
      and t.attempted_at + t.duration_ms * interval '1 millisecond' <= $4) d
  limit 50000), unsent as (
  select b.event_id, b.since from webhooks.backlog b
  where b.endpoint_id = $1 and b.state <> 'waiting' and b.reason = 'filter_slow' limit 50000), known as (
  select f.event_id, e.type, e.created_at, a.first_at, a.delivered, g.fate
  from (select event_id, null::timestamptz as since from failed union all select event_id, since from unsent) f
  left join lateral (select * from webhooks.events v where v.event_id = f.event_id limit 1) e on true
  left join lateral (
    select case when d.reason in ('expired', 'aborted', 'blocked') then d.reason
      when d.reason in ('exhausted', 'too_old') and d.attempts > 1 then 'tried'
      when d.reason in ('exhausted', 'too_old') and d.attempts = 1 then 'once' else 'untried' end as fate
    from webhooks.dead d
    where d.event_id = f.event_id and d.endpoint_id = $1
      and d.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped')) g on true
  cross join lateral (
    select coalesce(f.since, min(t.attempted_at + t.duration_ms * interval '1 millisecond')
        filter (where t.outcome not in ('delivered', 'failed'))) as first_at,
      f.since is null and bool_or(t.outcome = 'delivered') as delivered
    from webhooks.attempts t where t.event_id = f.event_id and t.endpoint_id = $1 and t.attempted_at <= $4) a)
select coalesce(type, '') as type, count(*) as failed, count(*) filter (where delivered) as late,
  count(*) filter (where fate = 'tried') as tried, count(*) filter (where fate = 'once') as once,
  count(*) filter (where fate = 'expired') as expired, count(*) filter (where fate = 'aborted') as aborted,
  count(*) filter (where fate = 'blocked') as blocked, count(*) filter (where fate = 'untried') as untried,
  count(*) filter (where first_at > $3 and first_at >= $2 and not delivered) as told,
  (array_agg(webhooks.webhook_id(event_id, created_at) order by event_id)
    filter (where first_at > $3 and first_at >= $2 and not delivered))[1:10] as webhook_ids
from known group by 1 order by told desc, 1
