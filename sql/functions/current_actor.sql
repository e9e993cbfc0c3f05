-- Names the actor of this session for records: the role that logged in, its application_name, and the Unix user of a
-- command (webhooks.actor).
create or replace function webhooks.current_actor() returns text
language sql stable set search_path = pg_catalog, webhooks, pg_temp as $$
  select session_user || coalesce(' (' || nullif(concat_ws(', ', nullif(current_setting('application_name'), ''),
    nullif(left(current_setting('webhooks.actor', true), 100), '')), '') || ')', '')
$$;
comment on function webhooks.current_actor is
  'The actor of this session: role (application_name, Unix user), the latter two only where they are known';
