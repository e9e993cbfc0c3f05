-- The tables of a day in the archive. $1 int: the day, as webhooks.day_of() counts days. Reads the catalogue.
select relname::text as name from pg_class
where relnamespace = to_regnamespace('webhooks_archive') and relkind = 'r'
  and relname ~ ('^(events|attempts|dead)_' || $1::int || '$')
order by relname
