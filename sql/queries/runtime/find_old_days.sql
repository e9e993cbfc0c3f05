-- Days that retention may remove, oldest first, with those whose removal has begun. $1 int: the first day that stays,
-- as webhooks.day_of() counts days; $2 int: how many. Reads the catalogue: tables that are detached already count as
-- well.
select d.day
from (
  select distinct substring(relname from '\d+$')::int as day from pg_class
  where relnamespace = 'webhooks'::regnamespace and relkind = 'r' and relname ~ '^(events|attempts|dead)_\d{1,8}$') d
where d.day < $1::int
  or exists (select from webhooks.partitions p where p.day = d.day and p.leaving_at is not null)
order by d.day
limit $2
