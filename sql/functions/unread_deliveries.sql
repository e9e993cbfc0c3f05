-- The deliveries of a site that the daemon has not settled yet, and that have no row for that reason: newest first. The
-- events are those that the stored position of the site's shard does not see. Lives on events_by_xid.
-- needs: shard_of, takes
create or replace function webhooks.unread_deliveries(
  site_id text, endpoint_id bigint, low bigint, top_event bigint, top_endpoint bigint, lim int)
returns table (event bigint, endpoint bigint)
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
declare
  shards constant bigint := (select greatest(count(*), 1) from webhooks.shards);
  position constant pg_snapshot := coalesce((
    select s.snapshot from webhooks.shards s
    where s.shard = webhooks.shard_of(unread_deliveries.site_id, shards)), '1:1:');
begin
  return query
    with e as materialized (
      select v.event_id, v.type, v.site_id, v.endpoint_id from webhooks.events v
      where v.xid >= pg_snapshot_xmax(position) and v.site_id = unread_deliveries.site_id
        and v.event_id + 0 >= low  -- + 0: not along the primary key
      union all
      select v.event_id, v.type, v.site_id, v.endpoint_id from webhooks.events v
      where v.xid = any (array(select pg_snapshot_xip(position))) and v.site_id = unread_deliveries.site_id
        and v.event_id + 0 >= low)
    select e.event_id, p.endpoint_id
    from e join webhooks.endpoints p on p.site_id = e.site_id
    where e.event_id <= top_event
      and (unread_deliveries.endpoint_id is null or p.endpoint_id = unread_deliveries.endpoint_id)
      and (e.endpoint_id = p.endpoint_id or e.endpoint_id is null and webhooks.takes(p.event_types, e.type))
      and e.event_id > p.from_event_id and (e.event_id, p.endpoint_id) < (top_event, top_endpoint)
      and not exists (
        select from webhooks.attempts a where a.event_id = e.event_id and a.endpoint_id = p.endpoint_id offset 0)
      and not exists (
        select from webhooks.backlog b where b.event_id = e.event_id and b.endpoint_id = p.endpoint_id offset 0)
      and not exists (
        select from webhooks.dead d where d.event_id = e.event_id and d.endpoint_id = p.endpoint_id offset 0)
    order by 1 desc, 2 desc
    limit lim;
end $$;
comment on function webhooks.unread_deliveries is
  'The deliveries of a site that the daemon has not settled yet. A part of site_deliveries';
