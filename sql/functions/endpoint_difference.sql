-- Compares the rows of an endpoint before and after a change, as JSON: {"column": [old, new]}. Shows of credentials
-- only that they changed, and of headers only the names. Encrypting a secret does not count. The CHECKs of the table
-- come later.
create or replace function webhooks.endpoint_difference(old jsonb, new jsonb) returns jsonb
language sql stable set search_path = pg_catalog, webhooks, pg_temp as $$
  select coalesce(jsonb_object_agg(c.name, case
    when c.name in ('secret', 'previous_secret', 'auth') then '["changed"]'
    when c.name <> 'headers' then jsonb_build_array(v.old, v.new)
    when n.old is not distinct from n.new then '["changed"]'
    else jsonb_build_array(n.old, n.new) end), '{}')
  from jsonb_object_keys(old || new) c(name)
  cross join lateral (select nullif(old -> c.name, 'null') as old, nullif(new -> c.name, 'null') as new) v
  cross join lateral (
    select jsonb_path_query_array(v.old, '$.keyvalue().key', '{}', true) as old,
      jsonb_path_query_array(v.new, '$.keyvalue().key', '{}', true) as new) n
  where v.old is distinct from v.new
    and c.name not in ('endpoint_id', 'created_at', 'revision', 'disabled_at', 'from_event_id', 'secret_kind',
      'ready', 'why', 'judged_at')
    and not (c.name in ('secret', 'previous_secret', 'auth') and v.old is not null
      and coalesce(v.new #>> '{}' like 'enc:v1:%', false))
$$;
comment on function webhooks.endpoint_difference is
  'The difference of two rows of endpoints, given as JSON: a column to [old, new], credentials to ["changed"]';
