-- The next deliveries of a replay: one function for the dry run and for the daemon. It reads a bounded number of rows,
-- however few deliveries it takes.
-- needs: replay_any, replay_dead
create or replace function webhooks.replay_page(
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
  -- The rows read are bounded, however few deliveries are taken.
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
comment on function webhooks.replay_page is
  'The next deliveries of a replay, and how far it has looked then; changes nothing';
