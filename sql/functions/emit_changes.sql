-- Trigger of watch_table: writes the rows that a statement inserts or updates as events. It runs with the rights of the
-- role that changes the table: a definer's function would run the casts of the table's own types as its owner. It is a
-- guest in the application's statement: a fault of the trigger, its table, the role's rights or a row is a warning, and
-- no event.
create or replace function webhooks.emit_changes() returns trigger
language plpgsql security invoker set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  kind constant text := case tg_op when 'INSERT' then tg_argv[1] when 'UPDATE' then tg_argv[2] end;
  omitted constant text[] := coalesce(tg_argv[3:], '{}');
  picks constant text := 'select r.%I::text as site_id, to_json(s.*)::text as said from %I r, lateral (select %s) s';
  columns text;
  unknown text;
  before name;
  after name;
begin
  if tg_level <> 'STATEMENT' or tg_when <> 'AFTER' or tg_op not in ('INSERT', 'UPDATE') then
    raise exception 'emit_changes is for triggers AFTER INSERT or AFTER UPDATE, FOR EACH STATEMENT'
      using errcode = 'trigger_protocol_violated';
  elsif tg_argv[0] is null or kind is null then
    raise exception 'emit_changes takes the site''s column, the type of new rows and that of changed rows'
      using errcode = 'trigger_protocol_violated';
  elsif kind !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(kind) > 128 then
    raise exception '% is not an event type', quote_literal(kind) using errcode = 'invalid_parameter_value';
  end if;
  select t.tgoldtable, t.tgnewtable into before, after from pg_trigger t where t.tgrelid = tg_relid and t.tgname = tg_name;
  if after is null or tg_op = 'UPDATE' and before is null then
    raise exception 'the trigger does not name its transition tables' using errcode = 'trigger_protocol_violated';
  end if;
  -- An omitted column that was renamed must not be sent.
  select name into unknown from unnest(tg_argv[0] || omitted) name
  where not exists (select from pg_attribute where attrelid = tg_relid and attname = name and attnum > 0 and not attisdropped);
  if found then
    raise exception 'there is no column % in %', quote_ident(unknown), tg_relid::regclass using errcode = 'undefined_column';
  end if;
  -- By columns, and not by taking members out of a row's JSON: that would choke on \u0000 in a column of type json.
  select string_agg(format('r.%I', attname), ', ' order by attnum) into columns
  from pg_attribute where attrelid = tg_relid and attnum > 0 and not attisdropped and attname <> all (omitted);
  execute 'insert into webhooks.events (site_id, type, payload) select site_id, $1, said::json from ('
    || format(picks, tg_argv[0], after, columns)
    || case tg_op when 'UPDATE' then ' except all ' || format(picks, tg_argv[0], before, columns) else '' end
    || ') c where length(site_id) between 1 and 200'
    using kind;
  return null;
exception when others then
  -- Class 40 is the fate of the whole transaction, 53 to 58 the trouble of the server.
  if left(sqlstate, 2) in ('40', '53', '57', '58', 'XX') or sqlstate = '55P03' then
    raise;
  end if;
  raise warning 'trigger % on % made no events: %', tg_name, tg_relid::regclass, sqlerrm
    using errcode = sqlstate, hint = 'webhooks.watch_table makes triggers that fit';
  if tg_op = 'DELETE' then
    return old;  -- null would keep a row from being changed, were this a trigger BEFORE each row
  end if;
  return new;
end $$;
comment on function webhooks.emit_changes is
'Turns the rows that a statement inserts or updates into events, one each, in one INSERT. webhooks.watch_table makes the
triggers. Arguments: the column with the site_id, the type of new rows, the type of changed rows, then the columns to leave
out. The payload is the row as to_json writes it. A row whose site is null makes no event, nor does an update that changes
only columns left out. The application''s statement never fails by it: an error is a WARNING, and makes no event. Roles
that change the table need to be members of webhooks_producer.';
