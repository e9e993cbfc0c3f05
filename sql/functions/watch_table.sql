-- Makes the triggers by which a table of the application writes its own events (emit_changes).
create or replace function webhooks.watch_table(watched regclass, site_column text, type_prefix text, leave_out text[] default '{}') returns void
language plpgsql security invoker set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  omitted constant text[] := coalesce(leave_out, '{}');
  arguments text;
  unknown text;
begin
  if type_prefix is null or type_prefix !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(type_prefix) > 120 then
    raise exception 'type_prefix is identifiers joined by dots, at most 120 characters, not %', coalesce(type_prefix, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  select name into unknown from unnest(site_column || omitted) name
  where not exists (select from pg_attribute where attrelid = watched and attname = name and attnum > 0 and not attisdropped);
  if found then
    raise exception 'there is no column % in %', coalesce(quote_ident(unknown), 'null'), watched using errcode = 'undefined_column';
  end if;
  select string_agg(quote_literal(a), ', ' order by n) into arguments
  from unnest(array[site_column, type_prefix || '_created', type_prefix || '_updated'] || omitted) with ordinality u(a, n);
  execute format('create or replace trigger webhooks_created after insert on %s referencing new table as new_rows'
    ' for each statement execute function webhooks.emit_changes(%s)', watched, arguments);
  execute format('create or replace trigger webhooks_updated after update on %s referencing old table as old_rows new table as new_rows'
    ' for each statement execute function webhooks.emit_changes(%s)', watched, arguments);
end $$;
comment on function webhooks.watch_table is
'Makes events of a table''s new and changed rows: webhooks.watch_table(''orders'', ''shop_id'', ''order'', ''{card_token}'')
sends order_created and order_updated for the site in shop_id, without card_token. Called again it replaces its triggers,
webhooks_created and webhooks_updated; drop these to end it. Its caller owns the table; the caller
and the roles that change the table are members of webhooks_producer.';
