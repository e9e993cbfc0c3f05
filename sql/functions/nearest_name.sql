-- The known site or type whose name begins most like a name, of its two neighbours in the alphabet; null if none begins
-- like it. Lives on the primary keys.
create or replace function webhooks.nearest_name(what text, name text) returns text
language sql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select k.name from (
    (select s.site_id as name from webhooks.sites s
     where what = 'site' and s.site_id >= nearest_name.name order by s.site_id limit 1)
    union all
    (select s.site_id from webhooks.sites s
     where what = 'site' and s.site_id < nearest_name.name order by s.site_id desc limit 1)
    union all
    (select t.name from webhooks.event_types t where what = 'type')) k
  cross join lateral (
    select count(*) as length from generate_series(1, least(length(nearest_name.name), 200)) n
    where left(k.name, n) = left(nearest_name.name, n)) alike
  where alike.length > 0
  order by alike.length desc, k.name limit 1
$$;
comment on function webhooks.nearest_name is
  'The known site or type whose name begins most like another; a part of the view unclaimed';
