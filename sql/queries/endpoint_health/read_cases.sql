-- Every incident of some owners, with the endpoint's data from other tables. $1 text[]: owners, in lower case; $2
-- timestamptz: now; $3 text[]: sites that name no owner; $4 text[]: errors of the outcome blocked that are due to the
-- platform's policy and not to the URL: these do not count. Failed attempts are counted along attempts_of_endpoint,
-- over the days in which an event that is still alive may lie; not more than 10,000 of them. As many rows are searched
-- for events that a filter holds up. An incident follows the last change of the endpoint before it, one of its newest
-- 1,000, if that came in the week before and nothing was delivered with it until the first failure.
select coalesce(lower(s.owner_email), '') as owner_email, i.endpoint_id, i.state, i.first_failure_at, i.last_failure_at,
  i.last_success_at, i.recovering_at, i.window_at, i.successes, i.last_outcome, i.last_status, i.last_error, i.last_event_id,
  i.last_attempt, i.marks, p.url, p.description, p.enabled, p.disabled_reason, p.snoozed_until, p.timeout_s, s.site_id,
  s.name as site_name, s.language, s.time_zone, f.failures, f.events_failed, f.days_failed,
  exists (select from webhooks.backlog b where b.endpoint_id = i.endpoint_id) as unsettled,
  d.dead, coalesce(w.filtering, false) as filtering, case when not p.enabled then h.since end as held_since,
  c.changed_at, c.changed
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
join webhooks.sites s using (site_id)
cross join lateral (
  select count(*)::int as failures,
    count(distinct a.event_id) filter (where a.outcome <> 'blocked')::int as events_failed,
    count(distinct (a.attempted_at at time zone 'UTC')::date) filter (where a.outcome <> 'blocked')::int as days_failed
  from (
    select t.event_id, t.attempted_at, t.outcome from webhooks.attempts t
    where t.endpoint_id = i.endpoint_id and t.outcome <> 'delivered' and t.outcome <> 'failed'
      and t.event_id >= (webhooks.day_of(i.first_failure_at) - 31)::bigint << 32
      and t.attempted_at >= i.first_failure_at and t.attempted_at <= $2
      and not (t.outcome = 'blocked' and split_part(replace(coalesce(t.error, ''), 'oauth2: ', ''), ':', 1) = any ($4::text[]))
      and (i.last_success_at is null or t.attempted_at > i.last_success_at)
    order by t.event_id desc
    limit 10000) a) f
cross join lateral (
  select count(*)::int as dead from (
    select from webhooks.dead t
    where t.endpoint_id = i.endpoint_id and t.event_id >= (webhooks.day_of(i.first_failure_at) - 31)::bigint << 32
      and t.since >= i.first_failure_at and t.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped', 'too_large', 'invalid')
      and (t.reason <> 'blocked' or exists (
        select from webhooks.attempts a where a.event_id = t.event_id and a.endpoint_id = t.endpoint_id and a.outcome = 'blocked'
          and split_part(replace(coalesce(a.error, ''), 'oauth2: ', ''), ':', 1) <> all ($4::text[])))
    limit 10000) t) d
left join lateral (
  select true as filtering from (
    select b.reason from webhooks.backlog b
    where p.filter is not null and b.endpoint_id = i.endpoint_id and b.state <> 'waiting' and b.reason <> 'quarantined'
    order by b.event_id limit 10000) b
  where b.reason = 'filter_slow' limit 1) w on true
left join lateral (
  select b.since from webhooks.backlog b where b.endpoint_id = i.endpoint_id and b.state = 'held' order by b.event_id limit 1) h on true
left join lateral (
  select r.changed_at, array(
    select k from jsonb_object_keys(r.changed) k where k in ('url', 'secret', 'auth', 'headers') order by k) as changed
  from (
    select v.* from (
      select t.revision, t.changed_at, t.changed from webhooks.endpoint_revisions t
      where t.endpoint_id = i.endpoint_id and t.revision > 1
      order by t.revision desc limit 1000) v
    where v.changed ?| '{url,secret,auth,headers}' and v.changed_at <= i.first_failure_at
    order by v.revision desc limit 1) r
  where r.changed_at >= i.first_failure_at - interval '7 days'
    and not exists (
      select from (
        select t.outcome, t.revision, t.attempted_at from webhooks.attempts t
        where t.endpoint_id = i.endpoint_id and t.event_id >= (webhooks.day_of(r.changed_at) - 1)::bigint << 32
        order by t.event_id limit 10000) t
      where t.outcome = 'delivered' and t.revision >= r.revision and t.attempted_at < i.first_failure_at)) c on true
where lower(s.owner_email) = any ($1) or s.owner_email is null and s.site_id = any ($3)
