-- The newest event_id handed out.
create or replace function webhooks.newest_event_id() returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select last_value - (not is_called)::int from webhooks.events_event_id_seq
$$;
