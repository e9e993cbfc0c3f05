-- What events may ask for, and filters of endpoints by the beginning of a type.
-- min_daemon: 0.1.0

comment on column webhooks.events.traceparent is 'Passed on as the header of that name, where it is one (W3C Trace Context)';
comment on column webhooks.events.deliver_after is 'Not delivered before; its age counts from then';
comment on column webhooks.events.deliver_before is 'No attempt starts from then on: dead, expired';
comment on column webhooks.events.dedupe_key is 'Of the events of a site with the same key the first is delivered; the others are stored, their deliveries dead, duplicate';
comment on column webhooks.events.supersede_key is 'A newer event (by event_id) of the same site and key replaces this one at each endpoint that takes both, where it is undelivered: dead, superseded';
comment on column webhooks.endpoints.event_types is 'Types this endpoint takes; order_* is every type that begins so, * every type. Those that begin with webhook_ are part of neither, but of webhook_*';

create or replace function webhooks.takes(event_types text[], type text) returns boolean
language sql immutable parallel safe as $$
  select exists (
    select from unnest(event_types) as wanted
    where wanted = type
      or (right(wanted, 1) = '*' and starts_with(type, left(wanted, -1))
        and (starts_with(wanted, 'webhook_') or not starts_with(type, 'webhook_'))))
$$;
