-- The tables of which row level security hides rows from this session's role, as one text. Reads the catalogue.
select string_agg(c.relname, ', ' order by c.relname)
from pg_class c
where c.relnamespace = to_regnamespace('webhooks') and c.relrowsecurity and not c.relispartition
  and row_security_active(c.oid)
