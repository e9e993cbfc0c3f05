-- What operators do by hand: try an endpoint, give a delivery up. And for upstream developers: a table's changes as events.
-- min_daemon: 0.1.0

create function webhooks.send_test(endpoint_id bigint, type text default 'webhook_test') returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  p webhooks.endpoints;
  sample jsonb;
  made bigint;
begin
  if type is null or type !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(type) > 128 then
    raise exception 'a type is identifiers joined by dots, at most 128 characters, not %', coalesce(type, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  select * into p from webhooks.endpoints e where e.endpoint_id = send_test.endpoint_id;
  if not found then
    raise exception 'there is no endpoint %', coalesce(endpoint_id::text, 'null') using errcode = 'no_data_found';
  elsif not p.enabled then  -- its events are held, so that a test would come when nobody waits for it
    raise exception 'endpoint % is disabled (%): enable it first', endpoint_id, p.disabled_reason
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  select t.example into sample from webhooks.event_types t
  where t.name = send_test.type and json_typeof(t.example) = 'object';
  insert into webhooks.events (site_id, type, payload, endpoint_id)
  values (p.site_id, send_test.type,
    coalesce(sample, '{"message": "This is a test: nothing has happened."}') || '{"test": true}', p.endpoint_id)
  returning events.event_id into made;
  insert into webhooks.operations (what, detail)
  values ('send_test', jsonb_build_object('endpoint_id', p.endpoint_id, 'type', send_test.type, 'event_id', made));
  return made;
end $$;
comment on function webhooks.send_test is 'Sends an event to this endpoint alone, whatever types and filters it has: the catalogue''s example with "test": true. It is tried once, and no mail speaks of it';

create function webhooks.cancel(event_id bigint, endpoint_id bigint default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  moved bigint;
begin
  if event_id is null then
    raise exception 'cancel wants an event' using errcode = 'null_value_not_allowed';
  end if;
  with gone as (
    delete from webhooks.backlog b
    where b.event_id = cancel.event_id and (cancel.endpoint_id is null or b.endpoint_id = cancel.endpoint_id)
    returning b.event_id, b.endpoint_id, b.site_id, b.attempts
  ), buried as (
    insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
    select g.event_id, g.endpoint_id, g.site_id, 'cancelled', g.attempts from gone g
    where exists (select from pg_inherits where inhrelid = to_regclass('webhooks.dead_' || g.event_id / 4294967296))
    on conflict on constraint dead_pkey do update set reason = 'cancelled', attempts = excluded.attempts, since = now()
  )
  select count(*) into moved from gone;
  if moved > 0 then
    insert into webhooks.operations (what, detail)
    values ('cancel', jsonb_build_object('event_id', cancel.event_id, 'endpoint_id', cancel.endpoint_id, 'cancelled', moved));
  elsif not exists (select from webhooks.events e where e.event_id = cancel.event_id) then
    raise exception 'there is no event %', cancel.event_id using errcode = 'no_data_found';
  end if;
  return moved;
end $$;
comment on function webhooks.cancel is 'Gives up what is left of an event''s deliveries (all, or one endpoint''s): from the backlog to dead, cancelled. Returns how many. A request that is on its way already is not called back, but is not tried again';

-- A table's changes as events. It runs with the rights of whoever changes the table, a member of webhooks_producer: a
-- definer's function that turns rows of any table into JSON would run the casts of these rows' own types as its owner.

create function webhooks.emit_changes() returns trigger
language plpgsql security invoker set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  kind text := case tg_op when 'INSERT' then tg_argv[1] when 'UPDATE' then tg_argv[2] end;
  omitted text[] := coalesce(tg_argv[3:], '{}');
  unknown text;
  rows_of text;
begin
  if tg_level <> 'STATEMENT' or tg_when <> 'AFTER' or kind is null then
    raise exception 'emit_changes is for triggers AFTER INSERT or AFTER UPDATE, FOR EACH STATEMENT,'
      ' with the site''s column, the type of new rows and that of changed rows' using errcode = 'trigger_protocol_violated';
  elsif kind !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(kind) > 128 then
    raise exception 'trigger %: % is no type', tg_name, quote_literal(kind) using errcode = 'invalid_parameter_value';
  end if;
  -- A column that was renamed is an error and not a reason to send what was to be left out.
  select name into unknown from unnest(tg_argv[0] || omitted) name
  where not exists (select from pg_attribute where attrelid = tg_relid and attname = name and attnum > 0 and not attisdropped);
  if found then
    raise exception 'trigger %: there is no column % in %', tg_name, quote_ident(unknown), tg_relid::regclass
      using errcode = 'undefined_column';
  end if;
  -- By columns, and not by taking members out of a row's JSON: that would choke on \u0000 in a column of type json.
  select format('select r.%I::text as site_id, to_json(s.*)::text as said from %%s r, lateral (select %s) s',
      tg_argv[0], string_agg(format('r.%I', attname), ', ' order by attnum) filter (where attname <> all (omitted)))
    into rows_of
  from pg_attribute where attrelid = tg_relid and attnum > 0 and not attisdropped;
  execute format(
    'insert into webhooks.events (site_id, type, payload) select site_id, $1, said::json from (%s) c'
    ' where length(site_id) between 1 and 200',
    case tg_op when 'INSERT' then format(rows_of, 'new_rows')
      else format('%s except all %s', format(rows_of, 'new_rows'), format(rows_of, 'old_rows')) end)
    using kind;
  return null;
end $$;
comment on function webhooks.emit_changes is
'Turns the rows that a statement inserts or updates into events, one each, in one INSERT. Arguments: the column with the
site_id, the type of new rows, the type of changed rows, then the columns to leave out. Two triggers, with these names for
the transition tables:
  create trigger order_created after insert on orders referencing new table as new_rows
    for each statement execute function webhooks.emit_changes(''shop_id'', ''order_created'', ''order_updated'', ''card_token'');
  create trigger order_updated after update on orders referencing old table as old_rows new table as new_rows
    for each statement execute function webhooks.emit_changes(''shop_id'', ''order_created'', ''order_updated'', ''card_token'', ''seen_at'');
The payload is the row as to_json writes it. A row whose site is null makes no event, nor does an update that changes nothing
but columns left out. Whoever changes the table needs the role webhooks_producer.';

revoke all on function webhooks.send_test, webhooks.cancel, webhooks.emit_changes from public;
