-- The size of each day of a schema: rows as Postgres estimates them, bytes of its tables and of all indexes, and the
-- reasons that keep it. $1 text: webhooks, or webhooks_archive, where nothing keeps a day. Reads the catalogue.
select d.day,
  coalesce(sum(d.rows) filter (where d.name = 'events'), 0)::bigint as events,
  coalesce(sum(d.rows) filter (where d.name = 'attempts'), 0)::bigint as attempts,
  coalesce(sum(pg_table_size(d.oid)) filter (where d.name = 'events'), 0)::bigint as event_bytes,
  coalesce(sum(pg_table_size(d.oid)) filter (where d.name = 'attempts'), 0)::bigint as attempt_bytes,
  coalesce(sum(pg_table_size(d.oid)) filter (where d.name = 'dead'), 0)::bigint as dead_bytes,
  sum(pg_indexes_size(d.oid))::bigint as index_bytes,
  case when $1::text = 'webhooks' then webhooks.why_kept(d.day) else '{}' end as kept_by
from (
  select substring(relname from '\d+$')::int as day, substring(relname from '^[a-z]+') as name, oid,
    greatest(reltuples, 0) as rows
  from pg_class
  where relnamespace = to_regnamespace($1::text) and relkind = 'r' and relname ~ '^(events|attempts|dead)_\d{1,8}$') d
group by d.day
order by d.day
