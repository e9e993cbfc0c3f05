-- Trigger of sites: an UPDATE is an operation, with the names of the columns that it changed, and so is a DELETE,
-- unless the function that makes it records itself (webhooks.recorded). No values, since addresses are personal.
create or replace function webhooks.note_site_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  if tg_op = 'UPDATE' then
    insert into webhooks.operations (what, detail)
    values ('site_changed', jsonb_build_object('site_id', new.site_id, 'columns', (
      select jsonb_agg(n.key order by n.key) from jsonb_each(to_jsonb(new)) n
      where n.value is distinct from to_jsonb(old) -> n.key)));
  elsif coalesce(current_setting('webhooks.recorded', true), '') <> 'on' then
    insert into webhooks.operations (what, detail) values ('site_deleted', jsonb_build_object('site_id', old.site_id));
  end if;
  return null;
end $$;
