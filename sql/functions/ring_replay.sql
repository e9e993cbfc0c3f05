-- A part of the functions of replays: notifies the daemon.
create or replace function webhooks.ring_replay() returns void
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  if current_setting('webhooks.bell', true) is distinct from 'off' then
    perform pg_notify('pghookd', 'replay');
  end if;
end $$;
