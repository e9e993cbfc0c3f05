-- The schema `webhooks`, its comment, and whether it has the tables that say how it was made; no row if there is none.
-- Reads the catalogue alone: it runs before the first migration.
select obj_description(n.oid, 'pg_namespace') as comment,
  exists (select from pg_class where relnamespace = n.oid and relname = 'migrations') as has_migrations,
  exists (select from pg_class where relnamespace = n.oid and relname = 'functions') as has_functions
from pg_namespace n where n.nspname = 'webhooks'
