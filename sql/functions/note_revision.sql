-- Trigger of endpoints: records each revision, the deletion as the last one. An UPDATE and a DELETE are operations as
-- well, unless the function that makes them records itself (webhooks.recorded).
-- needs: current_actor, endpoint_difference
create or replace function webhooks.note_revision() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  actor constant text := webhooks.current_actor();
  recorded constant boolean := coalesce(current_setting('webhooks.recorded', true), '') = 'on';
begin
  if tg_op = 'UPDATE' and new.revision = old.revision then
    return null;
  elsif tg_op <> 'INSERT' then
    update webhooks.endpoint_revisions r set replaced = true
    where r.endpoint_id = old.endpoint_id and r.revision = old.revision;
  end if;
  if tg_op = 'DELETE' then
    insert into webhooks.endpoint_revisions (endpoint_id, revision, site_id, actor, changed, replaced)
    values (old.endpoint_id, old.revision + 1, old.site_id, actor, '{"deleted": [false, true]}', true);
    insert into webhooks.operations (what, detail)
    select 'endpoint_deleted', jsonb_build_object('endpoint_id', old.endpoint_id, 'site_id', old.site_id)
    where not recorded;
    return null;
  end if;
  insert into webhooks.endpoint_revisions (endpoint_id, revision, site_id, actor, changed)
  values (new.endpoint_id, new.revision, new.site_id, actor,
    webhooks.endpoint_difference(case tg_op when 'UPDATE' then to_jsonb(old) else '{}' end, to_jsonb(new)));
  if tg_op = 'UPDATE' and not recorded then
    insert into webhooks.operations (what, detail)
    values ('endpoint_changed', jsonb_build_object('endpoint_id', new.endpoint_id, 'revision', new.revision)
      || case when old.enabled and not new.enabled then jsonb_build_object('reason', new.disabled_reason)
        else '{}' end);
  end if;
  return null;
end $$;
