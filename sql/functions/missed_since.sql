-- The deliveries of an endpoint that are pending or failed, of events since a time, newest first, in keyset pages. A
-- cursor is a place among the deliveries of all states, so the first rows of both states are the page.
-- needs: sees_site, site_deliveries
create or replace function webhooks.missed_since(
  endpoint_id bigint, since timestamptz, before text default null, lim int default 50)
returns setof webhooks.site_delivery
language sql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select d.*
  from webhooks.endpoints p
  cross join unnest('{pending,failed}'::text[]) s(state)
  cross join lateral webhooks.site_deliveries(
    p.site_id, endpoint_id => p.endpoint_id, state => s.state, since => missed_since.since,
    before => missed_since.before, lim => missed_since.lim) d
  where p.endpoint_id = missed_since.endpoint_id and webhooks.sees_site(p.site_id)
  order by d.event_id desc
  limit missed_since.lim
$$;
comment on function webhooks.missed_since is
  'The deliveries that an endpoint has not confirmed, pending or failed, of events since a time, newest first. '
  'The cursor of the last row is `before` of the next page';
