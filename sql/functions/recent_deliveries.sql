-- The deliveries of a site that have rows in some of the tables, newest first: for each endpoint the newest events of
-- each table. Lives on attempts_of_endpoint, backlog_of_endpoint and dead_of_endpoint, each read from its end, day by
-- day.
create or replace function webhooks.recent_deliveries(
  site_id text, endpoint_id bigint, states text[], low bigint, top_event bigint, top_endpoint bigint, lim int)
returns table (event bigint, endpoint bigint)
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
begin
  return query
    select c.event_id, p.endpoint_id
    from (
      select q.endpoint_id, case when q.endpoint_id < top_endpoint then top_event else top_event - 1 end as top
      from webhooks.endpoints q
      where q.site_id = recent_deliveries.site_id
        and (recent_deliveries.endpoint_id is null or q.endpoint_id = recent_deliveries.endpoint_id)
      offset 0) p
    cross join lateral (
      select u.event_id from (
        (select a.event_id from webhooks.attempts a
         where 'delivered' = any (states) and a.endpoint_id = p.endpoint_id
           and a.event_id >= low and a.event_id <= p.top
         group by a.event_id order by a.event_id desc limit lim)
        union all
        (select b.event_id from webhooks.backlog b
         where 'pending' = any (states) and b.endpoint_id = p.endpoint_id and b.event_id >= low and b.event_id <= p.top
         order by b.event_id desc limit lim)
        union all
        (select d.event_id from webhooks.dead d
         where 'failed' = any (states) and d.endpoint_id = p.endpoint_id and d.event_id >= low and d.event_id <= p.top
         order by d.event_id desc limit lim)) u
      group by u.event_id order by u.event_id desc limit lim) c
    order by 1 desc, 2 desc
    limit lim;
end $$;
comment on function webhooks.recent_deliveries is
  'Deliveries of a site that may be in one of these states, newest first. A part of site_deliveries';
