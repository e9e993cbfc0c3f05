-- Held and parked deliveries are taken in pages by the daemon: no statement touches all rows of an endpoint at once, so
-- that an endpoint with a million of them can be switched off and on again.
-- min_daemon: 0.1.0

drop index webhooks.backlog_parked;
create index backlog_aside on webhooks.backlog (endpoint_id, event_id) where state <> 'waiting' and reason <> 'quarantined';
create index backlog_held on webhooks.backlog (since) where state = 'held';
comment on column webhooks.backlog.since is 'Since when it is waiting, parked or held';

drop trigger endpoint_switched on webhooks.endpoints;
drop function webhooks.endpoint_switched();

create or replace function webhooks.enable_endpoint(endpoint_id bigint, held text default 'deliver') returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  was_enabled boolean;
  kept bigint;
begin
  if held not in ('deliver', 'drop', 'latest_per_key') then
    raise exception 'held is deliver, drop or latest_per_key, not %', held using errcode = 'invalid_parameter_value';
  end if;
  select e.enabled into was_enabled from webhooks.endpoints e
  where e.endpoint_id = enable_endpoint.endpoint_id for update;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  -- Of a disabled endpoint every row counts as held, written so or not yet.
  if held <> 'deliver' then
    with aside as (  -- of each key all but the newest; an event without a key has none that is newer
      select b.event_id, e.ordering_key is not null
        and row_number() over (partition by e.ordering_key order by b.event_id desc) > 1 as is_old
      from webhooks.backlog b
      left join lateral (select v.ordering_key from webhooks.events v where v.event_id = b.event_id limit 1) e on true
      where b.endpoint_id = enable_endpoint.endpoint_id and b.reason <> 'quarantined'
        and (b.state = 'held' or not was_enabled)
    ), gone as (
      delete from webhooks.backlog b using aside a
      where b.endpoint_id = enable_endpoint.endpoint_id and b.event_id = a.event_id and (held = 'drop' or a.is_old)
      returning b.event_id, b.endpoint_id, b.site_id, b.attempts)
    insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
    select g.event_id, g.endpoint_id, g.site_id, 'dropped', g.attempts from gone g
    on conflict do nothing;
  end if;
  select count(*) into kept from webhooks.backlog b
  where b.endpoint_id = enable_endpoint.endpoint_id and b.reason <> 'quarantined'
    and (b.state = 'held' or not was_enabled);
  update webhooks.endpoints e set enabled = true where e.endpoint_id = enable_endpoint.endpoint_id and not e.enabled;
  insert into webhooks.operations (what, detail)
  values ('enable_endpoint', jsonb_build_object('endpoint_id', enable_endpoint.endpoint_id, 'held', held, 'released', kept));
  return kept;
end $$;

-- A row stands by its endpoint's switch, whether or not the daemon has come to write it.

create or replace function webhooks.explain(event_id bigint) returns table (endpoint_id bigint, at timestamptz, what text, detail text)
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  e webhooks.events;
  nearest text;
begin
  select * into e from webhooks.events v where v.event_id = explain.event_id;
  if not found then
    return query select null::bigint, null::timestamptz, 'unknown', format('there is no event %s', explain.event_id);
    return;
  end if;
  return query select null::bigint, e.created_at, 'inserted',
    format('%s of site %s, %s', e.type, e.site_id, webhooks.webhook_id(e.event_id, e.created_at));
  if not exists (select from webhooks.sites s where s.site_id = e.site_id) then
    return query select null::bigint, null::timestamptz, 'no_site', format('site %s is not known', e.site_id);
  elsif not exists (select from webhooks.endpoints p where p.site_id = e.site_id) then
    return query select null::bigint, null::timestamptz, 'no_endpoint', format('site %s has no endpoint', e.site_id);
  elsif e.endpoint_id is null
    and not exists (select from webhooks.endpoints p where p.site_id = e.site_id and webhooks.takes(p.event_types, e.type)) then
    select t into nearest from webhooks.endpoints p, unnest(p.event_types) t where p.site_id = e.site_id and t is not null
    order by (select count(*) from generate_series(1, length(e.type)) n where left(t, n) = left(e.type, n)) desc, t limit 1;
    return query select null::bigint, null::timestamptz, 'no_taker',
      format('no endpoint of site %s takes %s; the nearest type that one takes is %s', e.site_id, e.type, coalesce(nearest, 'none'));
  end if;
  return query
    select p.endpoint_id, coalesce(a.attempted_at, d.since, b.since),
      case
        when b.event_id is not null then s.state
        when d.event_id is not null then 'dead'
        when a.outcome = 'delivered' then 'delivered'
        when e.endpoint_id is not null and e.endpoint_id <> p.endpoint_id then 'not_addressed'
        when e.event_id <= p.from_event_id then 'too_young'
        when e.endpoint_id is null and not webhooks.takes(p.event_types, e.type) then 'type_not_taken'
        when not p.enabled then 'disabled'
        else 'not_read_yet'
      end,
      case
        when b.event_id is not null then
          concat_ws(', ', s.reason, b.attempts || ' attempts', 'next at ' || s.next_attempt_at, 'last answer ' || concat_ws(' ', a.outcome, a.status, a.error))
        when d.event_id is not null then
          concat_ws(', ', d.reason, d.attempts || ' attempts', 'last answer ' || concat_ws(' ', a.outcome, a.status, a.error))
        when a.outcome = 'delivered' then format('at attempt %s, answered %s in %s ms', a.attempt, a.status, round(a.duration_ms))
        when e.endpoint_id is not null and e.endpoint_id <> p.endpoint_id then format('the event is for endpoint %s only', e.endpoint_id)
        when e.event_id <= p.from_event_id then 'the endpoint was made after the event'
        when e.endpoint_id is null and not webhooks.takes(p.event_types, e.type) then format('the endpoint takes %s', array_to_string(p.event_types, ', '))
        when not p.enabled then format('the endpoint is disabled (%s): the event will be held', p.disabled_reason)
        else 'the daemon has not settled it yet'
      end
    from webhooks.endpoints p
    left join webhooks.backlog b on b.event_id = e.event_id and b.endpoint_id = p.endpoint_id
    cross join lateral (select
      case when b.reason <> 'quarantined' and not p.enabled then 'held'
           when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'waiting' else b.state end as state,
      case when b.reason <> 'quarantined' and not p.enabled then 'disabled'
           when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'queued' else b.reason end as reason,
      case when p.enabled is distinct from false then b.next_attempt_at end as next_attempt_at) s
    left join webhooks.dead d on d.event_id = e.event_id and d.endpoint_id = p.endpoint_id
    left join lateral (
      select * from webhooks.attempts t where t.event_id = e.event_id and t.endpoint_id = p.endpoint_id
      order by t.attempt desc limit 1) a on true
    where p.site_id = e.site_id
    order by p.endpoint_id;
end $$;

create or replace view webhooks.deliveries as
with stands as (
  select b.event_id, b.endpoint_id, b.site_id, s.state, s.reason, b.attempts, s.next_attempt_at
  from webhooks.backlog b
  left join webhooks.endpoints p on p.endpoint_id = b.endpoint_id
  cross join lateral (select
    case when b.reason <> 'quarantined' and not p.enabled then 'held'
         when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'waiting' else b.state end as state,
    case when b.reason <> 'quarantined' and not p.enabled then 'disabled'
         when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'queued' else b.reason end as reason,
    case when p.enabled is distinct from false then b.next_attempt_at end as next_attempt_at) s
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
