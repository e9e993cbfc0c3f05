-- Secrets at rest, the erasing of what is personal, and functions that mean the same whoever calls them.
-- min_daemon: 0.1.0

-- Secrets at rest -------------------------------------------------------------------------------------------------
-- The daemon encrypts and decrypts, with a key that the database never sees; here stands what it made of them.

alter table webhooks.endpoints
  add column secret_kind text constraint "secret_kind is a known one" check (secret_kind in ('standard', 'ed25519', 'legacy'));
comment on column webhooks.endpoints.secret_kind is 'What an encrypted secret is: whsec_, whsk_, or any other text. Set with it';
comment on column webhooks.endpoints.secret is 'whsec_ + base64: Standard Webhooks; whsk_ + base64: an Ed25519 private key; enc:v1:...: either, encrypted by the daemon, which does so where it has secrets.key; any other text: its bytes are the key; null: requests are not signed';

-- What is still to be encrypted; every secret, where there is no key.
create index endpoints_plain on webhooks.endpoints (endpoint_id)
  where left(secret, 7) <> 'enc:v1:' or left(previous_secret, 7) <> 'enc:v1:';

create function webhooks.wrap_secrets(
  endpoint_ids bigint[], seen text[], wrapped text[], seen_previous text[], wrapped_previous text[], kinds text[]) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  bell constant text := coalesce(current_setting('webhooks.bell', true), '');
  done bigint;
begin
  if exists (select from unnest(wrapped || wrapped_previous) w where left(w, 7) <> 'enc:v1:') then
    raise exception 'wrap_secrets takes nothing but encrypted secrets' using errcode = 'invalid_parameter_value';
  end if;
  perform set_config('webhooks.bell', 'off', true);
  update webhooks.endpoints p
  set secret = u.wrapped, previous_secret = u.wrapped_previous, secret_kind = u.kind
  from unnest(endpoint_ids, seen, wrapped, seen_previous, wrapped_previous, kinds)
    as u(endpoint_id, seen, wrapped, seen_previous, wrapped_previous, kind)
  where p.endpoint_id = u.endpoint_id
    and p.secret is not distinct from u.seen and p.previous_secret is not distinct from u.seen_previous
    and (u.seen is null) = (u.wrapped is null) and (u.seen_previous is null) = (u.wrapped_previous is null);
  get diagnostics done = row_count;
  perform set_config('webhooks.bell', bell, true);
  return done;
end $$;
comment on function webhooks.wrap_secrets is 'Puts encrypted secrets in the place of those that were seen, unless they have changed meanwhile; rings no bell, since no signature changes. Returns how many endpoints';

create or replace function webhooks.rotate_secret(endpoint_id bigint, overlap interval default '24 hours', secret text default null) returns text
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  old text;
  kind text;
  fresh text := rotate_secret.secret;
  broken text;
begin
  if overlap is null or overlap < interval '0' or overlap > interval '30 days' then
    raise exception 'overlap is 0 to 30 days, not %', overlap using errcode = 'invalid_parameter_value';
  end if;
  select e.secret, e.secret_kind into old, kind from webhooks.endpoints e where e.endpoint_id = rotate_secret.endpoint_id for update;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  if fresh is null then  -- of the kind that the endpoint has; any 32 bytes are an Ed25519 private key
    fresh := webhooks.new_secret();
    if old like 'whsk\_%' or (old like 'enc:%' and kind = 'ed25519') then
      fresh := 'whsk_' || substr(fresh, 7);
    end if;
  elsif fresh = old then
    raise exception 'that is the secret of endpoint % already', endpoint_id using errcode = 'invalid_parameter_value';
  end if;
  begin
    update webhooks.endpoints e
    set secret = fresh,
      previous_secret = case when overlap > interval '0' then old end,
      previous_secret_until = case when overlap > interval '0' and old is not null then now() + overlap end
    where e.endpoint_id = rotate_secret.endpoint_id;
  exception when check_violation then  -- its own message shows the row, secrets and all
    get stacked diagnostics broken = constraint_name;
    raise exception 'the secret cannot be used: %', broken using errcode = 'check_violation', constraint = broken;
  end;
  insert into webhooks.operations (what, detail)
  values ('rotate_secret', jsonb_build_object('endpoint_id', rotate_secret.endpoint_id, 'overlap', overlap::text));
  return fresh;
end $$;

-- Payloads and answers, erased before the records of them -----------------------------------------------------------

create function webhooks.is_erased(payload json) returns boolean
language sql stable parallel safe
return case when pg_column_size(payload) < 64 then payload::text = '{"pghookd":"erased"}' else false end;
comment on function webhooks.is_erased is 'Whether the payload of an event was erased, as retention.payload_days says; such an event is never delivered again';
comment on table webhooks.events is 'The log. Producers INSERT site_id, type, payload; rows never change, but that payloads are erased where retention.payload_days says so';

create table webhooks.upkeep (
  what           text primary key constraint "what is a known one" check (what in ('payloads', 'responses')),
  after_event_id bigint not null default 0,
  again_from     bigint,
  began_at       timestamptz,
  ended_at       timestamptz
);
comment on table webhooks.upkeep is 'How far payloads and answers were looked through that may have to be erased; the daemon''s own';
comment on column webhooks.upkeep.again_from is 'The first event that could not be erased yet: the next walk begins there';

-- No payload may go while its event is put on its way again: a replay that is at work at this moment is waited for, and
-- one that would begin waits for the page (milliseconds). What has a row in backlog then is left alone.

create function webhooks.erase_payloads(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz := now() - make_interval(secs => days * 86400);
  settled bigint := coalesce((select min(s.floor) from webhooks.shards s), 0);
  ids bigint[];
  page record;
begin
  insert into webhooks.upkeep (what) values ('payloads') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'payloads' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  end if;
  lock table webhooks.replays in exclusive mode;
  select count(*) as seen, max(k.event_id) as last, bool_or(k.created_at < bound) as has_old,
    array_agg(k.event_id) filter (where k.ripe) as ripe, min(k.event_id) filter (where not (k.ripe or k.gone)) as left_over
  into page
  from (
    select e.event_id, e.created_at, g.gone,
      e.created_at < bound and e.event_id <= settled and not g.gone
        and not exists (select from webhooks.backlog b where b.event_id = e.event_id) as ripe
    from (
      select v.event_id, v.created_at, v.payload from webhooks.events v
      where v.event_id > u.after_event_id order by v.event_id limit looks) e
    cross join lateral (select webhooks.is_erased(e.payload) as gone) g) k;
  ids := coalesce(page.ripe, '{}');
  update webhooks.events v set payload = '{"pghookd":"erased"}'
  where v.event_id = any (ids) and v.event_id > u.after_event_id and v.event_id <= page.last;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then page.last else coalesce(u.again_from - 1, page.last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    ended_at = case when ended then now() end
  where k.what = 'payloads';
  return next;
end $$;
comment on function webhooks.erase_payloads is 'Erases the payloads of the next events that are older and have nothing on its way; the daemon''s own. Looks at so many events, and not again for a while once it has come to the end';

create function webhooks.erase_responses(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz := now() - make_interval(secs => days * 86400);
  last bigint;
  page record;
begin
  insert into webhooks.upkeep (what) values ('responses') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'responses' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  elsif u.ended_at is not null or u.began_at is null then  -- a walk begins
    if exists (select from webhooks.replays r where coalesce(r.ended_at, now()) >= u.began_at) then
      u.after_event_id := 0;  -- old events have new attempts
    end if;
    u.began_at := now();
    u.again_from := (select min(b.event_id) from webhooks.backlog b);  -- these will have more
    u.after_event_id := least(u.after_event_id, u.again_from - 1);
  end if;
  select max(t.event_id) into last from (
    select a.event_id from webhooks.attempts a where a.event_id > u.after_event_id order by a.event_id limit looks) t;
  select count(*) as seen, coalesce(bool_or(a.attempted_at < bound), false) as has_old,
    min(a.event_id) filter (where a.response is not null and a.attempted_at >= bound) as left_over
  into page
  from webhooks.attempts a where a.event_id > u.after_event_id and a.event_id <= last;
  update webhooks.attempts a set response = null
  where a.event_id > u.after_event_id and a.event_id <= last and a.response is not null and a.attempted_at < bound;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then last else coalesce(u.again_from - 1, last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    began_at = u.began_at, ended_at = case when ended then now() end
  where k.what = 'responses';
  return next;
end $$;
comment on function webhooks.erase_responses is 'Erases the answers kept with the next attempts that are older; the daemon''s own';

-- As before, without what is erased.

create or replace function webhooks.replay_dead(
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
      and not webhooks.is_erased(e.payload)
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

create or replace function webhooks.replay_any(
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
      and not webhooks.is_erased(v.payload)
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

create or replace function webhooks.plan_replay(
  event_ids bigint[] default null, endpoint_id bigint default null, site_id text default null, types text[] default null,
  since timestamptz default null, until timestamptz default null, states text[] default '{dead}',
  rate_per_s real default null) returns webhooks.replays
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_variable
declare
  allowed constant text[] := '{dead,delivered,missed}';
  unknown text;
  erased bigint;
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

  if event_ids is not null then
    select e.event_id into erased from webhooks.events e
    where e.event_id = any (event_ids) and webhooks.is_erased(e.payload) order by 1 limit 1;
    if found then
      raise exception 'event % cannot be replayed: its payload is erased, as retention.payload_days says', erased
        using errcode = 'object_not_in_prerequisite_state';
    end if;
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

-- Forgetting a site -------------------------------------------------------------------------------------------------
-- What stands by itself goes at once: site, endpoints, incidents, mails. The log has no index by site, and nobody is to
-- wait for a scan of it: it is walked in pages, by whoever asks for a second and by the daemon for the rest; and once
-- more a little later, for what was on its way.

create table webhooks.forgotten (
  site_id        text collate "C" primary key,
  asked_at       timestamptz not null default now(),
  asked_xid      xid8 not null default pg_current_xact_id(),
  walk           smallint not null default 1,
  after_event_id bigint not null default 0,
  to_event_id    bigint not null,
  erased         bigint not null default 0
);
comment on table webhooks.forgotten is 'Sites that are being erased, until nothing is left of them; the daemon''s own';

create function webhooks.forget_owner(owner_email text, site_id text) returns bigint
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  whose constant text := lower(owner_email);
  named constant jsonb := jsonb_build_object('sections', jsonb_build_array(jsonb_build_object('site_id', forget_owner.site_id)));
  total bigint := 0;
  n bigint;
begin
  if not exists (select from webhooks.sites s where lower(s.owner_email) = whose) then
    delete from webhooks.emails e where e.owner_email = whose;
    get diagnostics total = row_count;
    delete from webhooks.owners o where o.owner_email = whose;
    get diagnostics n = row_count;
    total := total + n;
    update webhooks.operations o set detail = '{}' where lower(o.detail ->> 'owner_email') = whose;
  end if;
  -- Mails to others, and to owners of further sites: what they say of this one.
  delete from webhooks.emails e
  where e.digest @> named
    and not exists (select from jsonb_array_elements(e.digest -> 'sections') x where x ->> 'site_id' is distinct from forget_owner.site_id);
  get diagnostics n = row_count;
  update webhooks.emails e
  set subject = null, digest = jsonb_set(e.digest, '{sections}',
    (select jsonb_agg(x) from jsonb_array_elements(e.digest -> 'sections') x where x ->> 'site_id' is distinct from forget_owner.site_id))
  where e.digest @> named;
  return total + n;
end $$;

create function webhooks.forget_page(site_id text, looks int) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  f webhooks.forgotten;
  page record;
  n bigint;
  total bigint := 0;
begin
  select * into f from webhooks.forgotten g where g.site_id = forget_page.site_id for update skip locked;
  if not found then
    return null;
  elsif f.walk = 2 and f.after_event_id = 0 then
    -- Requests have ended by then, and so have transactions that may have inserted for it.
    if f.asked_at > now() - interval '2 minutes' or pg_snapshot_xmin(pg_current_snapshot()) < f.asked_xid then
      return null;
    end if;
    f.to_event_id := webhooks.newest_event_id();
  end if;
  select count(*) as seen, max(t.event_id) as last into page from (
    select e.event_id from webhooks.events e
    where e.event_id > f.after_event_id and e.event_id <= f.to_event_id order by e.event_id limit looks) t;
  if page.seen < looks then
    page.last := f.to_event_id;
  end if;
  delete from webhooks.backlog b using (  -- what the daemon has in its hand is left to the second walk
    select w.event_id, w.endpoint_id from webhooks.backlog w
    where w.event_id > f.after_event_id and w.event_id <= page.last and w.site_id = f.site_id for update skip locked) w
  where b.event_id = w.event_id and b.endpoint_id = w.endpoint_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.dead d where d.event_id > f.after_event_id and d.event_id <= page.last and d.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.attempts a where a.event_id > f.after_event_id and a.event_id <= page.last and a.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.events e where e.event_id > f.after_event_id and e.event_id <= page.last and e.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  if page.seen = looks then
    update webhooks.forgotten g set after_event_id = page.last, to_event_id = f.to_event_id, erased = g.erased + total
    where g.site_id = f.site_id;
    return total;
  elsif f.walk = 1 then
    update webhooks.forgotten g set walk = 2, after_event_id = 0, erased = g.erased + total where g.site_id = f.site_id;
  else
    delete from webhooks.forgotten g where g.site_id = f.site_id;
    insert into webhooks.operations (what, detail)
    values ('forgotten', jsonb_build_object('site_sha256', encode(sha256(convert_to(f.site_id, 'UTF8')), 'hex'), 'rows', f.erased + total));
  end if;
  return total;
end $$;
comment on function webhooks.forget_page is 'Erases what the next events of the log have of a site that is being forgotten; null: there is nothing to do now. The daemon''s own';

create function webhooks.forget(site_id text) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  until constant timestamptz := clock_timestamp() + interval '1 second';
  ids bigint[];
  owner text;
  n bigint;
  total bigint := 0;
begin
  if site_id is null then
    raise exception 'forget wants a site' using errcode = 'null_value_not_allowed';
  end if;
  select array_agg(p.endpoint_id) into ids from webhooks.endpoints p where p.site_id = forget.site_id;
  delete from webhooks.sites s where s.site_id = forget.site_id returning s.owner_email into owner;
  get diagnostics total = row_count;
  ids := coalesce(ids, '{}');
  total := total + cardinality(ids) + webhooks.forget_owner(owner, forget.site_id);
  update webhooks.replays r
  set state = case when r.state in ('running', 'paused') then 'cancelled' else r.state end,
    ended_at = coalesce(r.ended_at, now()), spec = r.spec - '{site_id,endpoint_id,types,event_ids}'::text[]
  where r.spec ->> 'site_id' = forget.site_id or (r.spec ->> 'endpoint_id') = any (ids::text[]);
  update webhooks.operations o set detail = '{}'
  where o.detail ->> 'site_id' = forget.site_id or (o.detail ->> 'endpoint_id') = any (ids::text[]);
  insert into webhooks.forgotten as g (site_id, to_event_id) values (forget.site_id, webhooks.newest_event_id())
  on conflict on constraint forgotten_pkey do update
  set asked_at = excluded.asked_at, asked_xid = excluded.asked_xid, to_event_id = excluded.to_event_id,
    walk = 1, after_event_id = case when g.walk = 1 and total = 0 then g.after_event_id else 0 end;
  insert into webhooks.operations (what, detail)
  values ('forget', jsonb_build_object('site_sha256', encode(sha256(convert_to(forget.site_id, 'UTF8')), 'hex'),
    'endpoints', cardinality(ids)));
  loop
    n := webhooks.forget_page(forget.site_id, 5000);
    total := total + coalesce(n, 0);
    exit when n is null or clock_timestamp() > until
      or (select g.walk = 2 from webhooks.forgotten g where g.site_id = forget.site_id);
  end loop;
  return total;
end $$;
comment on function webhooks.forget is 'Erases a site: itself, its endpoints, their events, deliveries, attempts and mails, and its owner where they have no other. Sending stops at once; of the log as much goes as a second allows, the daemon erases the rest and looks once more after two minutes. Returns how many rows are gone already';

-- The same for every caller ------------------------------------------------------------------------------------------
-- These are called by views and by whoever likes, with the caller's rights and search_path; their names are bound here.

create or replace function webhooks.webhook_id(event_id bigint, created_at timestamptz) returns text
language sql immutable strict parallel safe
return 'evt_' || lpad(to_hex(event_id), 14, '0')
  || lpad(to_hex(greatest(0, least(72057594037927935, extract(epoch from created_at) * 1000000))::bigint), 14, '0');

create or replace function webhooks.event_id(webhook_id text) returns bigint
language sql immutable strict parallel safe
return case when webhook_id ~ '^evt_[0-9a-f]{28}$' then ('x' || lpad(substr(webhook_id, 5, 14), 16, '0'))::bit(64)::bigint end;

revoke all on function webhooks.wrap_secrets, webhooks.is_erased, webhooks.erase_payloads, webhooks.erase_responses,
  webhooks.forget_owner, webhooks.forget_page, webhooks.forget from public;
