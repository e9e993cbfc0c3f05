-- The superuser that owns the tables, if this session's role is not a member of it. Reads the catalogue.
select r.rolname from pg_class c join pg_roles r on r.oid = c.relowner
where c.relnamespace = to_regnamespace('webhooks') and c.relname = 'events'
  and r.rolsuper and not pg_has_role(r.oid, 'member')
