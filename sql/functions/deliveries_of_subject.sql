-- The events of a site with one subject, each with every endpoint of the site: newest first. Lives on
-- events_by_subject.
create or replace function webhooks.deliveries_of_subject(
  site_id text, endpoint_id bigint, subject text, low bigint, top_event bigint, top_endpoint bigint, lim int)
returns table (event bigint, endpoint bigint)
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set max_parallel_workers_per_gather = 0 as $$
#variable_conflict use_column
declare
  takers constant int := (
    select count(*) from webhooks.endpoints p
    where p.site_id = deliveries_of_subject.site_id
      and (deliveries_of_subject.endpoint_id is null or p.endpoint_id = deliveries_of_subject.endpoint_id));
begin
  return query
    select e.event_id, p.endpoint_id
    from (
      select v.event_id from webhooks.events v
      where v.site_id = deliveries_of_subject.site_id
        and left(v.subject, 400) = left(deliveries_of_subject.subject, 400)
        and v.subject = deliveries_of_subject.subject and v.event_id >= low and v.event_id <= top_event
      order by v.event_id + 0 desc  -- + 0: not along the primary key
      limit lim / greatest(takers, 1) + 2) e  -- of the top event no endpoint may be left
    join webhooks.endpoints p on p.site_id = deliveries_of_subject.site_id
    where (deliveries_of_subject.endpoint_id is null or p.endpoint_id = deliveries_of_subject.endpoint_id)
      and (e.event_id, p.endpoint_id) < (top_event, top_endpoint)
    order by 1 desc, 2 desc
    limit lim;
end $$;
comment on function webhooks.deliveries_of_subject is
  'Deliveries that a site may have of one subject, newest first. A part of site_deliveries';
