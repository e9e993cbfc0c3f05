-- The deliveries that a site has, or may get, of events with one subject: newest first. An event that the stored
-- position of the site's shard does not see may go to every endpoint. Lives on events_by_subject, and on the primary
-- keys of each event's day.
-- needs: shard_of
create or replace function webhooks.deliveries_of_subject(
  site_id text, endpoint_id bigint, subject text, low bigint, top_event bigint, top_endpoint bigint, lim int)
returns table (event bigint, endpoint bigint)
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
declare
  position constant pg_snapshot := coalesce((
    select s.snapshot from webhooks.shards s where s.shard = webhooks.shard_of(
      deliveries_of_subject.site_id, (select greatest(count(*), 1) from webhooks.shards))), '1:1:');
begin
  return query
    select e.event_id, p.endpoint_id
    from (
      select v.event_id + 0 as event_id, v.xid from webhooks.events v  -- + 0: not along the primary key
      where v.site_id = deliveries_of_subject.site_id
        and left(v.subject, 400) = left(deliveries_of_subject.subject, 400)
        and v.subject = deliveries_of_subject.subject and v.event_id >= low and v.event_id <= top_event
      order by 1 desc
      offset 0) e
    cross join lateral (
      select a.endpoint_id from webhooks.attempts a where a.event_id = e.event_id
      union
      select b.endpoint_id from webhooks.backlog b where b.event_id = e.event_id
      union
      select d.endpoint_id from webhooks.dead d where d.event_id = e.event_id
      union
      select u.endpoint_id from webhooks.endpoints u
      where u.site_id = deliveries_of_subject.site_id and not pg_visible_in_snapshot(e.xid, position)) c
    join webhooks.endpoints p on p.endpoint_id = c.endpoint_id and p.site_id = deliveries_of_subject.site_id
    where (deliveries_of_subject.endpoint_id is null or p.endpoint_id = deliveries_of_subject.endpoint_id)
      and (e.event_id, p.endpoint_id) < (top_event, top_endpoint)
    order by 1 desc, 2 desc
    limit lim;
end $$;
comment on function webhooks.deliveries_of_subject is
  'Deliveries that a site may have of one subject, newest first. A part of site_deliveries';
