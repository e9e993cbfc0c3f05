-- Acts as the owner of the schema `webhooks` from here on, if this session may; `reset role` ends it. Changes nothing
-- where there is no such schema, or this session's role owns it. Reads the catalogue.
select set_config('role', pg_get_userbyid(n.nspowner)::text, false) from pg_namespace n
where n.nspname = 'webhooks' and pg_get_userbyid(n.nspowner) <> current_user and pg_has_role(n.nspowner, 'member')
