-- Adds to the counts of today's events that nobody took, and returns those of unknown sites and types with the nearest
-- known name. A known site and a type of the catalogue are left out: it is normal that a site has no endpoint. At most
-- 10,000 rows a day. $1 text[]: site or type; $2 text[]: names; $3 bigint[]: numbers of events.
with noted as (
  insert into webhooks.unclaimed_events as t (day, what, name, events)
  select current_date, u.what, u.name, u.events
  from unnest($1::text[], $2::text[], $3::bigint[]) u(what, name, events)
  where case u.what
      when 'site' then not exists (select from webhooks.sites s where s.site_id = u.name)
      else not exists (select from webhooks.event_types k where k.name = u.name) end
    and ((select count(*) from webhooks.unclaimed_events where day = current_date) < 10000
      or exists (
        select from webhooks.unclaimed_events o where (o.day, o.what, o.name) = (current_date, u.what, u.name)))
  on conflict (day, what, name) do update set events = t.events + excluded.events, last_at = now()
  returning t.what, t.name, t.events
)
select what, name, events, webhooks.nearest_name(what, name) as nearest from noted
