-- The log of a site, for a platform's own settings page: its deliveries, newest first, in keyset pages. It reads pages
-- of candidates until enough of them pass; a filter that nearly nothing passes reads on to the end. The newest days are
-- read first, then ever more of them: each day costs a step into its index for each endpoint, with a row or without.
-- needs: day_of, deliveries_of_subject, first_event_id, last_event_id, recent_deliveries, sees_site, shard_of, unread_deliveries, webhook_id
create or replace function webhooks.site_deliveries(
  site_id text, endpoint_id bigint default null, state text default null, type text default null,
  subject text default null, since timestamptz default null, until timestamptz default null, before text default null,
  lim int default 50)
returns setof webhooks.site_delivery
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
declare
  states constant text[] :=
    case when site_deliveries.state is null then '{delivered,pending,failed}' else array[site_deliveries.state] end;
  low constant bigint :=
    case when isfinite(since) and since > '2020-01-02' then webhooks.first_event_id(since) else 0 end;
  top_event bigint := least(  -- partitions of later days are there, and empty
    case when isfinite(until) then webhooks.last_event_id(until) end,
    (select (greatest(webhooks.day_of(), s.last_value / 4294967296) + 1) * 4294967296 - 1
     from webhooks.events_event_id_seq s));
  top_endpoint bigint := 9223372036854775807;
  position pg_snapshot;
  events bigint[];
  endpoints bigint[];
  edge bigint;  -- no id below it is read in this round
  days int := 1;  -- how many before that of the top event
  looks int;
  n int;
  found_rows int := 0;
begin
  if not states <@ '{delivered,pending,failed}' then
    raise exception 'state is delivered, pending or failed, not %', site_deliveries.state
      using errcode = 'invalid_parameter_value';
  elsif lim is null or lim not between 1 and 1000 then
    raise exception 'lim is 1 to 1000, not %', coalesce(lim::text, 'null') using errcode = 'invalid_parameter_value';
  elsif before !~ '^\d{1,18}\.\d{1,18}$' then
    raise exception 'before is the cursor of a row, not %', quote_literal(before)
      using errcode = 'invalid_parameter_value';
  elsif webhooks.sees_site(site_deliveries.site_id) is not true then
    return;
  end if;
  if before is not null then
    if split_part(before, '.', 1)::bigint <= top_event then
      top_event := split_part(before, '.', 1);
      top_endpoint := split_part(before, '.', 2);
    end if;
  end if;
  position := coalesce((
    select s.snapshot from webhooks.shards s where s.shard = webhooks.shard_of(
      site_deliveries.site_id, (select greatest(count(*), 1) from webhooks.shards))), '1:1:');
  looks := case when num_nonnulls(site_deliveries.type, site_deliveries.subject, since, until) = 0 then lim
    else greatest(lim, 200) end;
  loop
    edge := greatest(low, (top_event / 4294967296 - days) * 4294967296);
    if site_deliveries.subject is not null then
      select array_agg(c.event), array_agg(c.endpoint) into events, endpoints
      from webhooks.deliveries_of_subject(site_deliveries.site_id, site_deliveries.endpoint_id, site_deliveries.subject,
        edge, top_event, top_endpoint, looks) c;
    else
      select array_agg(c.event order by c.event desc, c.endpoint desc),
        array_agg(c.endpoint order by c.event desc, c.endpoint desc)
      into events, endpoints
      from (
        select r.event, r.endpoint from webhooks.recent_deliveries(
          site_deliveries.site_id, site_deliveries.endpoint_id, states, edge, top_event, top_endpoint, looks) r
        union
        select u.event, u.endpoint from webhooks.unread_deliveries(site_deliveries.site_id,
          site_deliveries.endpoint_id, site_deliveries.type, edge, top_event, top_endpoint, looks) u
        where 'pending' = any (states)
        order by 1 desc, 2 desc
        limit looks) c;
    end if;
    return query
      select k.event_id || '.' || k.endpoint_id, k.event_id, webhooks.webhook_id(e.event_id, e.created_at),
        k.endpoint_id, e.type, e.subject, s.state, s.detail, coalesce(b.attempts, d.attempts, a.attempt, 0)::int,
        e.created_at, a.attempted_at, a.status, a.error, s.next_attempt_at
      from unnest(events, endpoints) with ordinality k(event_id, endpoint_id, n)
      cross join lateral (
        select v.event_id, v.type, v.subject, v.created_at, v.xid, v.endpoint_id from webhooks.events v
        where v.event_id = k.event_id limit 1) e
      left join lateral (
        select b.attempts, l.state, l.reason, l.next_attempt_at from webhooks.backlog b
        left join webhooks.endpoints p on p.endpoint_id = b.endpoint_id
        cross join lateral (select
          --include delivery_state
        ) l
        where b.event_id = k.event_id and b.endpoint_id = k.endpoint_id limit 1) b on true
      left join lateral (
        select g.attempts, g.reason from webhooks.dead g
        where g.event_id = k.event_id and g.endpoint_id = k.endpoint_id limit 1) d on true
      left join lateral (
        select t.attempt, t.attempted_at, t.outcome, t.status, t.error from webhooks.attempts t
        where t.event_id = k.event_id and t.endpoint_id = k.endpoint_id order by t.attempt desc limit 1) a on true
      cross join lateral (
        select
          case when b.state is not null then 'pending' when d.reason is not null then 'failed'
            when a.outcome = 'delivered' then 'delivered'
            when not pg_visible_in_snapshot(e.xid, position) then 'pending' end as state,
          case when b.state is not null then b.state || ': ' || b.reason when d.reason is not null then d.reason
            when a.outcome is null then 'unread' end as detail,
          b.next_attempt_at) s
      where s.state = any (states)
        and (site_deliveries.type is null or e.type = site_deliveries.type)
        and (since is null or e.created_at >= since) and (until is null or e.created_at < until)
      order by k.n
      limit lim - found_rows;
    get diagnostics n = row_count;
    found_rows := found_rows + n;
    exit when found_rows = lim;
    if cardinality(events) = looks then
      top_event := events[looks];
      top_endpoint := endpoints[looks];
      looks := least(4 * looks, 4000);
    else
      exit when edge = low;
      top_event := edge - 1;
      top_endpoint := 9223372036854775807;
      days := 16 * days;
    end if;
  end loop;
end $$;
comment on function webhooks.site_deliveries is
  'The deliveries of a site, newest first, filtered, without payloads: delivered, pending (with the next time) or '
  'failed. The cursor of the last row is `before` of the next page';
