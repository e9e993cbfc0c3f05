-- The deliveries of a site that the daemon has not settled yet, and that have no row for that reason: newest first. The
-- events are those that the stored position of the site's shard does not see, all of them beyond its floor. Lives on
-- events_by_xid.
-- needs: shard_of, takes
create or replace function webhooks.unread_deliveries(
  site_id text, endpoint_id bigint, type text, low bigint, top_event bigint, top_endpoint bigint, lim int)
returns table (event bigint, endpoint bigint)
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
declare
  shards constant bigint := (select greatest(count(*), 1) from webhooks.shards);
  position pg_snapshot;
  floor bigint;
begin
  select s.snapshot, s.floor into position, floor from webhooks.shards s
  where s.shard = webhooks.shard_of(unread_deliveries.site_id, shards) and s.snapshot is not null;
  if top_event <= floor then
    return;
  end if;
  position := coalesce(position, '1:1:');
  return query
    with e as materialized (
      select v.event_id, v.type, v.endpoint_id from webhooks.events v
      where v.xid >= pg_snapshot_xmax(position) and v.site_id || '' = unread_deliveries.site_id
        and (unread_deliveries.type is null or v.type = unread_deliveries.type)
        and v.event_id + 0 >= low  -- + 0, || '': along no other index
      union all
      select v.event_id, v.type, v.endpoint_id from webhooks.events v
      where v.xid = any (array(select pg_snapshot_xip(position))) and v.site_id || '' = unread_deliveries.site_id
        and (unread_deliveries.type is null or v.type = unread_deliveries.type)
        and v.event_id + 0 >= low
    ), p as materialized (
      select q.endpoint_id, q.event_types, q.from_event_id from webhooks.endpoints q
      where q.site_id = unread_deliveries.site_id
        and (unread_deliveries.endpoint_id is null or q.endpoint_id = unread_deliveries.endpoint_id)
    )
    select c.event_id, c.endpoint_id
    from (
      select e.event_id, p.endpoint_id, p.event_types, e.type, e.endpoint_id as only_endpoint_id
      from e cross join p
      where e.event_id <= top_event and e.event_id > p.from_event_id
        and (e.event_id, p.endpoint_id) < (top_event, top_endpoint)
      order by 1 desc, 2 desc
      offset 0) c  -- the conditions below cost more: they are evaluated until there are enough rows
    where (c.only_endpoint_id = c.endpoint_id or c.only_endpoint_id is null and webhooks.takes(c.event_types, c.type))
      and not exists (
        select from webhooks.attempts a where a.event_id = c.event_id and a.endpoint_id = c.endpoint_id offset 0)
      and not exists (
        select from webhooks.backlog b where b.event_id = c.event_id and b.endpoint_id = c.endpoint_id offset 0)
      and not exists (
        select from webhooks.dead d where d.event_id = c.event_id and d.endpoint_id = c.endpoint_id offset 0)
    order by 1 desc, 2 desc
    limit lim;
end $$;
comment on function webhooks.unread_deliveries is
  'The deliveries of a site that the daemon has not settled yet. A part of site_deliveries';
