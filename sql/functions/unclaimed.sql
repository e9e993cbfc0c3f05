-- View for operators: events that nobody took because their site or their type is not known, by day, with the nearest
-- known name: a mistyped one shows here.
-- needs: nearest_name
create or replace view webhooks.unclaimed as
select u.day, u.what, u.name, webhooks.nearest_name(u.what, u.name) as nearest, u.events, u.first_at, u.last_at
from webhooks.unclaimed_events u;
comment on view webhooks.unclaimed is
  'Events of unknown sites, and of types outside the catalogue that no endpoint of their site takes: how many by day, '
  'and the nearest known name';
