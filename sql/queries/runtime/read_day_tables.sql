-- The tables that there are of a day, events first: whether each is attached, and whether a detachment was interrupted.
-- $1 int: the day. Reads the catalogue.
select t.name, i.inhrelid is not null as attached, coalesce(i.inhdetachpending, false) as interrupted
from unnest('{events,attempts,dead}'::text[]) with ordinality t(name, n)
join pg_class c on c.relnamespace = 'webhooks'::regnamespace and c.relname = t.name || '_' || $1::int
left join pg_inherits i on i.inhrelid = c.oid
order by t.n
