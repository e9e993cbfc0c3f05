-- The same as an INSERT into events, for roles and ORMs that may not insert or expect a function. One for each type
-- that a payload may have: with text among them, a literal and an untyped parameter find their function.
create or replace function webhooks.emit(
  site_id text, type text, payload json, subject text default null, ordering_key text default null,
  dedupe_key text default null, supersede_key text default null, traceparent text default null,
  deliver_after timestamptz default null, deliver_before timestamptz default null) returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  insert into webhooks.events (site_id, type, payload, subject, ordering_key, dedupe_key, supersede_key, traceparent,
    deliver_after, deliver_before)
  values (emit.site_id, emit.type, emit.payload, emit.subject, emit.ordering_key, emit.dedupe_key, emit.supersede_key,
    emit.traceparent, emit.deliver_after, emit.deliver_before)
  returning events.event_id
$$;
comment on function webhooks.emit(text, text, json, text, text, text, text, text, timestamptz, timestamptz) is
  'The same as an INSERT into events, for roles and ORMs that cannot; returns the event_id';

create or replace function webhooks.emit(
  site_id text, type text, payload jsonb, subject text default null, ordering_key text default null,
  dedupe_key text default null, supersede_key text default null, traceparent text default null,
  deliver_after timestamptz default null, deliver_before timestamptz default null) returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.emit(site_id, type, payload::json, subject, ordering_key, dedupe_key, supersede_key, traceparent,
    deliver_after, deliver_before)
$$;
comment on function webhooks.emit(text, text, jsonb, text, text, text, text, text, timestamptz, timestamptz) is
  'emit for a payload of type jsonb; it is sent as Postgres writes it: keys in an order of its own, each once';

create or replace function webhooks.emit(
  site_id text, type text, payload text, subject text default null, ordering_key text default null,
  dedupe_key text default null, supersede_key text default null, traceparent text default null,
  deliver_after timestamptz default null, deliver_before timestamptz default null) returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.emit(site_id, type, payload::json, subject, ordering_key, dedupe_key, supersede_key, traceparent,
    deliver_after, deliver_before)
$$;
comment on function webhooks.emit(text, text, text, text, text, text, text, text, timestamptz, timestamptz) is
  'emit for a payload that is JSON in a text, a literal or a parameter without a type';
