-- Replays: deliveries that go out once more, or for the first time, at a rate and beside live traffic. One function says
-- which they are, for the dry run and for the daemon alike; the daemon takes them page by page.
-- min_daemon: 0.1.0

alter table webhooks.backlog
  add column attempts_before smallint not null default 0;
comment on column webhooks.backlog.attempts_before is 'Of the attempts, those before the latest replay: the schedule counts failures from there';

alter table webhooks.replays
  alter column rate_per_s set default 100,
  alter column rate_per_s set not null,
  add constraint "rate_per_s is more than 0 and at most 1000" check (rate_per_s > 0 and rate_per_s <= 1000),
  add column endpoints int not null default 0,
  add column last_event_id bigint not null default 0,
  add column settled_event_id bigint not null default 0,
  add column after_event_id bigint not null default 0,
  add column after_endpoint_id bigint not null default 0,
  add column started_at timestamptz,
  add column ended_at timestamptz;
create index replays_running on webhooks.replays (replay_id) where state = 'running';
comment on table webhooks.replays is 'Replays and how far they are; see webhooks.replay';
comment on column webhooks.replays.spec is 'What webhooks.replay was asked for';
comment on column webhooks.replays.total is 'Deliveries that it found when it was asked for';
comment on column webhooks.replays.endpoints is 'To how many endpoints they go';
comment on column webhooks.replays.done is 'Deliveries put on their way so far';
comment on column webhooks.replays.last_event_id is 'No event after this one is replayed';
comment on column webhooks.replays.settled_event_id is 'Up to here the daemon has settled everything: what has no row was missed';
comment on column webhooks.replays.after_event_id is 'With after_endpoint_id: how far it has looked';

-- Which deliveries ------------------------------------------------------------------------------------------------
-- Between two ids, in the order of the cursor. Both are one SELECT, so that the planner sees through them, and both are
-- called by replay_page alone, whose search_path they have.

create function webhooks.replay_dead(
  event_ids bigint[], endpoint_id bigint, site_id text, types text[], since timestamptz, until timestamptz, made_at timestamptz,
  after_event_id bigint, after_endpoint_id bigint, to_event_id bigint, most int)
returns table (event bigint, endpoint bigint, site text, attempt smallint)
language sql stable as $$
  select d.event_id, d.endpoint_id, d.site_id, d.attempts
  from (
    select b.event_id, b.endpoint_id, b.site_id, b.attempts from webhooks.dead b
    where b.event_id >= replay_dead.after_event_id and b.event_id <= replay_dead.to_event_id
      and (b.event_id, b.endpoint_id) > (replay_dead.after_event_id, replay_dead.after_endpoint_id)
      and (replay_dead.event_ids is null or b.event_id = any (replay_dead.event_ids))
      and (replay_dead.endpoint_id is null or b.endpoint_id = replay_dead.endpoint_id)
      and (replay_dead.site_id is null or b.site_id = replay_dead.site_id)
      -- nobody lost these; one that is named is meant
      and (replay_dead.event_ids is not null or b.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped'))
      and b.attempts < 30000
    order by b.event_id, b.endpoint_id
    offset 0) d
  cross join lateral (
    select from webhooks.events e
    where e.event_id = d.event_id and e.event_id >= replay_dead.after_event_id and e.event_id <= replay_dead.to_event_id
      and (replay_dead.types is null or webhooks.takes(replay_dead.types, e.type))
      and (replay_dead.since is null or e.created_at >= replay_dead.since)
      and (replay_dead.until is null or e.created_at < replay_dead.until)
    limit 1) e
  cross join lateral (
    select from webhooks.endpoints p
    where p.endpoint_id = d.endpoint_id and (p.enabled or p.disabled_at >= replay_dead.made_at)
    limit 1) p
  where not exists (
    select from webhooks.backlog b where b.event_id = d.event_id and b.endpoint_id = d.endpoint_id)
  order by d.event_id, d.endpoint_id
  limit most
$$;

create function webhooks.replay_any(
  event_ids bigint[], endpoint_id bigint, site_id text, types text[], since timestamptz, until timestamptz, states text[],
  made_at timestamptz, settled_event_id bigint, after_event_id bigint, after_endpoint_id bigint, to_event_id bigint, most int)
returns table (event bigint, endpoint bigint, site text, attempt smallint)
language sql stable as $$
  select e.event_id, p.endpoint_id, e.site_id, coalesce(d.attempts, t.attempts, 0::smallint)
  from (
    select v.event_id, v.site_id, v.type, v.endpoint_id from webhooks.events v
    where v.event_id >= replay_any.after_event_id and v.event_id <= replay_any.to_event_id
      and (replay_any.event_ids is null or v.event_id = any (replay_any.event_ids))
      and (replay_any.site_id is null or v.site_id = replay_any.site_id)
      and (replay_any.types is null or webhooks.takes(replay_any.types, v.type))
      and (replay_any.since is null or v.created_at >= replay_any.since)
      and (replay_any.until is null or v.created_at < replay_any.until)
    order by v.event_id
    offset 0) e
  cross join lateral (
    select q.endpoint_id, q.from_event_id, q.event_types from webhooks.endpoints q
    where q.site_id = e.site_id and (q.enabled or q.disabled_at >= replay_any.made_at)
      and (replay_any.endpoint_id is null or q.endpoint_id = replay_any.endpoint_id)
      and (e.endpoint_id is null or q.endpoint_id = e.endpoint_id)
      and (e.event_id > replay_any.after_event_id or q.endpoint_id > replay_any.after_endpoint_id)
    offset 0) p
  left join lateral (
    select b.attempts, b.reason from webhooks.dead b
    where b.event_id = e.event_id and b.endpoint_id = p.endpoint_id
      and b.event_id >= replay_any.after_event_id and b.event_id <= replay_any.to_event_id
    limit 1) d on true
  cross join lateral (
    select max(a.attempt) as attempts, bool_or(a.outcome = 'delivered') as delivered from webhooks.attempts a
    where a.event_id = e.event_id and a.endpoint_id = p.endpoint_id
      and a.event_id >= replay_any.after_event_id and a.event_id <= replay_any.to_event_id) t
  where not exists (
      select from webhooks.backlog b where b.event_id = e.event_id and b.endpoint_id = p.endpoint_id)
    and coalesce(d.attempts, t.attempts, 0) < 30000
    and case
      when d.reason is not null then 'dead' = any (states)
        and (replay_any.event_ids is not null or d.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped'))
      when t.delivered then 'delivered' = any (states)
      when t.attempts is null then 'missed' = any (states)
        -- above these the event may be on its way at this moment
        and e.event_id <= greatest(p.from_event_id, replay_any.settled_event_id)
        and (e.endpoint_id is not null or webhooks.takes(p.event_types, e.type))
      else false end
  order by e.event_id, p.endpoint_id
  limit most
$$;

create function webhooks.replay_page(
  r webhooks.replays, looks int, most int,
  out events bigint[], out endpoints bigint[], out sites text[], out attempts smallint[],
  out to_event_id bigint, out to_endpoint_id bigint, out ended boolean)
language plpgsql stable
set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  ids bigint[] := case when jsonb_typeof(r.spec -> 'event_ids') = 'array'
    then array(select i::bigint from jsonb_array_elements_text(r.spec -> 'event_ids') i) end;
  only_endpoint bigint := r.spec ->> 'endpoint_id';
  only_site text := r.spec ->> 'site_id';
  types text[] := case when jsonb_typeof(r.spec -> 'types') = 'array' then array(select jsonb_array_elements_text(r.spec -> 'types')) end;
  states text[] := array(select jsonb_array_elements_text(r.spec -> 'states'));
  dead_only constant boolean := states <@ '{dead}'::text[];
begin
  if only_endpoint is not null and not dead_only then  -- of another site it can be none: so that nothing is looked up for those
    select p.site_id into only_site from webhooks.endpoints p
    where p.endpoint_id = only_endpoint and (only_site is null or p.site_id = only_site);
    only_site := coalesce(only_site, '');
  end if;
  -- What is looked at is bounded, however few of it are taken.
  if ids is not null then
    select i into to_event_id from unnest(ids) i where i >= r.after_event_id and i <= r.last_event_id order by i offset looks - 1 limit 1;
  elsif dead_only then
    select d.event_id into to_event_id from webhooks.dead d
    where d.event_id >= r.after_event_id and d.event_id <= r.last_event_id and (only_endpoint is null or d.endpoint_id = only_endpoint)
    order by d.event_id offset looks - 1 limit 1;
  else
    select e.event_id into to_event_id from webhooks.events e
    where e.event_id >= r.after_event_id and e.event_id <= r.last_event_id
    order by e.event_id offset looks - 1 limit 1;
  end if;
  ended := to_event_id is null;
  to_event_id := coalesce(to_event_id, r.last_event_id);
  to_endpoint_id := 9223372036854775807;
  if dead_only then
    select array_agg(event), array_agg(endpoint), array_agg(site), array_agg(attempt) into events, endpoints, sites, attempts
    from webhooks.replay_dead(ids, only_endpoint, only_site, types, (r.spec ->> 'since')::timestamptz, (r.spec ->> 'until')::timestamptz,
      r.created_at, r.after_event_id, r.after_endpoint_id, to_event_id, most);
  else
    select array_agg(event), array_agg(endpoint), array_agg(site), array_agg(attempt) into events, endpoints, sites, attempts
    from webhooks.replay_any(ids, only_endpoint, only_site, types, (r.spec ->> 'since')::timestamptz, (r.spec ->> 'until')::timestamptz,
      states, r.created_at, r.settled_event_id, r.after_event_id, r.after_endpoint_id, to_event_id, most);
  end if;
  if cardinality(events) = most then
    ended := false;
    to_event_id := events[most];
    to_endpoint_id := endpoints[most];
  end if;
end $$;
comment on function webhooks.replay_page is 'The next deliveries of a replay, and how far it has looked then; changes nothing';

-- The daemon's step -----------------------------------------------------------------------------------------------

create function webhooks.advance_replay(replay_id bigint, looks int, most int) returns table (taken int, ended boolean)
language plpgsql volatile
set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  r webhooks.replays;
  page record;
begin
  select * into r from webhooks.replays p
  where p.replay_id = advance_replay.replay_id and p.state = 'running' for update skip locked;
  if not found then  -- paused, cancelled, or somebody is about to
    return;
  end if;
  page := webhooks.replay_page(r, looks, most);
  with queued as (
    insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, attempts_before, next_attempt_at, released_at)
    select u.event, u.endpoint, u.site, case when p.enabled then 'waiting' else 'held' end,
      case when p.enabled then 'replay' else 'disabled' end, u.attempt, u.attempt, case when p.enabled then now() end, now()
    from unnest(page.events, page.endpoints, page.sites, page.attempts) as u(event, endpoint, site, attempt)
    join webhooks.endpoints p on p.endpoint_id = u.endpoint
    on conflict do nothing
    returning event_id, endpoint_id
  ), freed as (
    delete from webhooks.dead d using queued q
    where d.event_id = q.event_id and d.endpoint_id = q.endpoint_id
      and d.event_id >= r.after_event_id and d.event_id <= page.to_event_id
  )
  select count(*) into taken from queued;
  ended := page.ended;
  update webhooks.replays p
  set done = p.done + taken, after_event_id = page.to_event_id, after_endpoint_id = page.to_endpoint_id,
    started_at = coalesce(p.started_at, now()),
    state = case when page.ended then 'done' else p.state end, ended_at = case when page.ended then now() end
  where p.replay_id = advance_replay.replay_id;
  return next;
end $$;
comment on function webhooks.advance_replay is 'Puts the next deliveries of a replay on their way; the daemon''s own, between two batches of its recorder';

-- For operators ---------------------------------------------------------------------------------------------------

create function webhooks.first_event_id(since timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
  day bigint;
  first timestamptz;
begin
  -- The sequence enters a day late where nobody moves it: a day whose first event is later than that had its events before.
  for day in
    select substr(c.relname, 8)::bigint from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'webhooks.events'::regclass and c.relname ~ '^events_[0-9]+$'
      and substr(c.relname, 8)::bigint <= webhooks.day_of(since)
    order by 1 desc
  loop
    select e.created_at into first from webhooks.events e
    where e.event_id >= day * 4294967296 and e.event_id < (day + 1) * 4294967296 order by e.event_id limit 1;
    if first < since - interval '1 hour' then
      return day * 4294967296;
    end if;
  end loop;
  return 0;
end $$;
comment on function webhooks.first_event_id is 'No event that was made since then has a lesser id, long transactions apart';

create function webhooks.plan_replay(
  event_ids bigint[] default null, endpoint_id bigint default null, site_id text default null, types text[] default null,
  since timestamptz default null, until timestamptz default null, states text[] default '{dead}',
  rate_per_s real default null) returns webhooks.replays
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_variable
declare
  allowed constant text[] := '{dead,delivered,missed}';
  unknown text;
  r webhooks.replays;
  look webhooks.replays;
  page record;
  seen bigint[] := '{}';
begin
  if num_nonnulls(event_ids, endpoint_id, site_id, types, since, until) = 0 then
    raise exception 'say what to replay: event_ids, endpoint_id, site_id, types, since or until' using errcode = 'invalid_parameter_value';
  end if;
  select coalesce(s, 'null') into unknown from unnest(states) s where s is null or s <> all (allowed) limit 1;
  if unknown is not null or coalesce(cardinality(states), 0) = 0 then
    raise exception 'states are %, not %', array_to_string(allowed, ', '), coalesce(unknown, 'none') using errcode = 'invalid_parameter_value';
  end if;
  if not (rate_per_s is null or rate_per_s > 0 and rate_per_s <= 1000) then
    raise exception 'rate_per_s is more than 0 and at most 1000, not %', rate_per_s using errcode = 'invalid_parameter_value';
  end if;
  if cardinality(event_ids) > 10000 then
    raise exception 'at most 10000 event_ids at once, not %', cardinality(event_ids) using errcode = 'invalid_parameter_value';
  end if;
  perform from webhooks.endpoints p where p.endpoint_id = plan_replay.endpoint_id;
  if not found and endpoint_id is not null then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;

  r.created_at := now();
  r.rate_per_s := coalesce(rate_per_s, 100);
  r.spec := jsonb_strip_nulls(jsonb_build_object(
    'event_ids', case when event_ids is not null then to_jsonb(array(select distinct i from unnest(event_ids) i where i is not null order by 1)) end,
    'endpoint_id', endpoint_id, 'site_id', site_id, 'types', types, 'since', since, 'until', until,
    'states', array(select distinct s from unnest(states) s order by 1)));
  r.after_event_id := coalesce(case when event_ids is not null then (select min(i) from unnest(event_ids) i)
    when isfinite(since) and since > '2020-01-02' then webhooks.first_event_id(since) end, 0);
  r.after_endpoint_id := -9223372036854775808;
  r.last_event_id := webhooks.newest_event_id();
  if event_ids is not null then
    r.last_event_id := least(r.last_event_id, coalesce((select max(i) from unnest(event_ids) i), 0));
  end if;
  if isfinite(until) then  -- an id may be drawn a day after its transaction began
    r.last_event_id := least(r.last_event_id, (greatest(0, webhooks.day_of(until)) + 2) * 4294967296 - 1);
  end if;
  r.settled_event_id := coalesce((select min(s.floor) from webhooks.shards s), 0);

  r.total := 0;
  look := r;
  loop  -- the daemon's own pages, larger ones: what is counted is what will go out
    page := webhooks.replay_page(look, 20000, null);
    r.total := r.total + coalesce(cardinality(page.events), 0);
    seen := array(select distinct i from unnest(seen || page.endpoints) i);
    exit when page.ended;
    look.after_event_id := page.to_event_id;
    look.after_endpoint_id := page.to_endpoint_id;
  end loop;
  r.endpoints := cardinality(seen);
  return r;
end $$;
comment on function webhooks.plan_replay is 'What webhooks.replay would do, as the row that it would make: total and endpoints are what it found. Changes nothing';

create function webhooks.replay(
  event_ids bigint[] default null, endpoint_id bigint default null, site_id text default null, types text[] default null,
  since timestamptz default null, until timestamptz default null, states text[] default '{dead}',
  rate_per_s real default null, dry_run boolean default true) returns table (replay_id bigint, deliveries bigint)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_variable
declare
  r webhooks.replays := webhooks.plan_replay(event_ids, endpoint_id, site_id, types, since, until, states, rate_per_s);
begin
  deliveries := r.total;
  if dry_run is false then  -- null is no order
    insert into webhooks.replays as p
      (spec, rate_per_s, total, endpoints, created_at, last_event_id, settled_event_id, after_event_id, after_endpoint_id)
    values (r.spec, r.rate_per_s, r.total, r.endpoints, r.created_at, r.last_event_id, r.settled_event_id, r.after_event_id, r.after_endpoint_id)
    returning p.replay_id into replay_id;
    insert into webhooks.operations (what, detail)
    values ('replay', r.spec || jsonb_build_object('replay_id', replay_id, 'deliveries', deliveries, 'rate_per_s', r.rate_per_s));
    perform webhooks.ring_replay();
  end if;
  return next;
end $$;
comment on function webhooks.replay is 'Delivers once more what is dead or delivered, or for the first time what an endpoint missed (states dead, delivered, missed); at rate_per_s, 100 where it is null. Counts only, unless dry_run is false';

create function webhooks.ring_replay() returns void
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  if current_setting('webhooks.bell', true) is distinct from 'off' then
    perform pg_notify('pghookd', 'replay');
  end if;
end $$;

create function webhooks.switch_replay(replay_id bigint, from_states text[], to_state text, what text) returns void
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  was text;
begin
  select p.state into was from webhooks.replays p where p.replay_id = switch_replay.replay_id for update;
  if not found then
    raise exception 'there is no replay %', replay_id using errcode = 'no_data_found';
  elsif was <> all (from_states) then
    raise exception 'replay % is %', replay_id, was using errcode = 'object_not_in_prerequisite_state';
  end if;
  update webhooks.replays p
  set state = to_state, ended_at = case when to_state = 'cancelled' then now() end
  where p.replay_id = switch_replay.replay_id;
  insert into webhooks.operations (what, detail)
  values (switch_replay.what, jsonb_build_object('replay_id', switch_replay.replay_id));
  perform webhooks.ring_replay();
end $$;

create function webhooks.pause_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{running}', 'paused', 'pause_replay')
$$;
comment on function webhooks.pause_replay is 'Puts no more deliveries of a replay on their way; those that are go on';

create function webhooks.resume_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{paused}', 'running', 'resume_replay')
$$;
comment on function webhooks.resume_replay is 'Lets a paused replay go on where it stood';

create function webhooks.cancel_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{running,paused}', 'cancelled', 'cancel_replay')
$$;
comment on function webhooks.cancel_replay is 'Ends a replay for good; what is on its way goes on';

revoke all on function webhooks.replay_dead, webhooks.replay_any, webhooks.replay_page, webhooks.advance_replay,
  webhooks.first_event_id, webhooks.plan_replay, webhooks.replay, webhooks.ring_replay, webhooks.switch_replay, webhooks.pause_replay,
  webhooks.resume_replay, webhooks.cancel_replay from public;
