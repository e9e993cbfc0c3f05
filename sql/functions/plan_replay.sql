-- Counts the deliveries of a replay, for operators and for replay itself; changes nothing. Its pages are the daemon's
-- own, only larger: the deliveries counted are those that will go out.
-- needs: day_of, first_event_id, is_erased, newest_event_id, replay_page
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
  r.after_event_id := greatest(r.after_event_id,  -- a day that is leaving is not replayed
    (select (max(p.day) + 1) * 4294967296 from webhooks.partitions p where p.leaving_at is not null));
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
  loop  -- the daemon's own pages, only larger: it counts the deliveries that will go out
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
comment on function webhooks.plan_replay is
  'The row that webhooks.replay would make, with the total and the endpoints that it would find. Changes nothing';
