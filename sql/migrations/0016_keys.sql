-- What dedupe_key and supersede_key mean, and bounds for what endpoints and owners may enter.
-- min_daemon: 0.1.0

comment on column webhooks.events.dedupe_key is 'Of the events of a site with the same key the first is delivered, whatever becomes of it; the others are stored, their deliveries dead, duplicate. A key is free again when no event has had it for seven days';
comment on column webhooks.events.supersede_key is 'A newer event (by event_id) of the same site and key replaces this one at each endpoint that takes both, where it is undelivered: dead, superseded. A newer event that cannot be delivered replaces nothing, nor does one whose deliver_after has not come';

-- Each page of the log reads the lists of its sites' endpoints, and compares them with its types.
alter table webhooks.endpoints
  add constraint "event_types has at most 200 entries of at most 129 characters" check (
    cardinality(event_types) <= 200 and length(array_to_string(event_types, '', '')) <= 200 * 129
    and array_to_string(event_types, E'\n', '') !~ '[^\n]{130}');

-- An address is part of index keys, which have at most 2,704 bytes. RFC 5321, 4.5.3.1: 64 characters, @, 255.
alter table webhooks.sites
  add constraint "owner_email is at most 320 characters" check (length(owner_email) <= 320);
