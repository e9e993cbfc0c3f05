-- Days that retention may remove: first those whose removal has begun, since Postgres detaches no second partition of a
-- table meanwhile, then the others, oldest first. $1 int: the first day that stays, as webhooks.day_of() counts days;
-- $2 int: how many. Reads the catalogue: tables that are detached already count as well.
select d.day
from (
  select distinct substring(relname from '\d+$')::int as day from pg_class
  where relnamespace = 'webhooks'::regnamespace and relkind = 'r' and relname ~ '^(events|attempts|dead)_\d{1,8}$') d
left join webhooks.partitions p on p.day = d.day and p.leaving_at is not null
where d.day < $1::int or p.day is not null
order by p.day is null, d.day
limit $2
