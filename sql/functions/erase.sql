-- Erases the data of a person in the log, for operators: payloads and answers of the events of one subject. Settled
-- events go at once, archived days included. The daemon erases the others as they are settled, and checks once more
-- after two minutes, for events that were in flight.
-- needs: current_actor, erase_archived, erase_excerpts, erase_subject, newest_event_id
create or replace function webhooks.erase(site_id text, subject text, pending text default 'deliver') returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  archived constant bigint := webhooks.erase_archived(erase.site_id, erase.subject);
begin
  if num_nulls(site_id, subject) > 0 then
    raise exception 'erase wants a site and a subject' using errcode = 'null_value_not_allowed';
  elsif pending not in ('deliver', 'cancel') then
    raise exception 'pending is deliver or cancel, not %', pending using errcode = 'invalid_parameter_value';
  end if;
  insert into webhooks.erasures as e (site_id, subject, pending, actor, to_event_id, events)
  values (erase.site_id, erase.subject, coalesce(erase.pending, 'deliver'), webhooks.current_actor(),
    webhooks.newest_event_id(), archived)
  on conflict on constraint erasures_pkey do update
  set pending = excluded.pending, asked_at = excluded.asked_at, asked_xid = excluded.asked_xid, actor = excluded.actor,
    to_event_id = excluded.to_event_id, events = e.events + archived;
  insert into webhooks.operations (what, detail)
  values ('erase', jsonb_build_object('site_id', erase.site_id, 'pending', coalesce(erase.pending, 'deliver'),
    'subject_sha256', encode(sha256(convert_to(erase.subject, 'UTF8')), 'hex')));
  perform webhooks.erase_excerpts(erase.site_id);
  return archived + coalesce(webhooks.erase_subject(erase.site_id, erase.subject), 0);
end $$;
comment on function webhooks.erase is
  'Erases payloads and answers of all events of a site with a subject, archived days included. Deliveries that are '
  'pending are delivered first, or given up where pending is cancel. Returns how many events are erased already; the '
  'daemon erases the rest, and leaves a receipt in operations: erased';
