-- Privileges that this session's role lacks for the daemon's work, each as words. $1 text[], $2 text[]: tables, and a
-- privilege on each; $3 text[]: functions. Reads the catalogue.
with ours as (
  select c.oid, c.relname, c.relkind, c.relowner
  from pg_class c where c.relnamespace = to_regnamespace('webhooks') and not c.relispartition
)
select format('%s on %s', n.privilege, n.name) as lacking
from unnest($1::text[], $2::text[]) n (name, privilege)
left join ours o on o.relname = n.name and o.relkind in ('r', 'p')
where o.oid is null or not case when n.privilege in ('insert', 'update')
  then has_any_column_privilege(o.oid, n.privilege) else has_table_privilege(o.oid, n.privilege) end
union all
select format('%s on sequence %s', p, o.relname)
from ours o, unnest(array['select', 'update']) p
where o.relkind = 'S' and o.relname = 'events_event_id_seq' and not has_sequence_privilege(o.oid, p)
union all
select format('execute on function %s', f.name)
from unnest($3::text[]) f (name)
left join pg_proc p on p.pronamespace = to_regnamespace('webhooks') and p.proname = f.name
where p.oid is null or not has_function_privilege(p.oid, 'execute')
union all
select format('membership of %s, the owner of %s', pg_get_userbyid(o.relowner), o.relname)
from ours o join pg_roles r on r.oid = o.relowner
where o.relname = 'events' and not r.rolsuper and not pg_has_role(o.relowner, 'member')
