-- A part of erase: erases the settled events of a subject, and ends the erasure if nothing is left. Returns how many
-- events it erased; null: another call is at it. Called by the daemon as well. As in erase_payloads, a running replay
-- is waited for.
-- needs: cancel, erase_excerpts, is_erased
create or replace function webhooks.erase_subject(site_id text, subject text) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
set lock_timeout = '1s' as $$
declare
  r webhooks.erasures;
  settled bigint := coalesce((select min(s.floor) from webhooks.shards s), 0);
  ripe bigint[];
  rest bigint[];
  n bigint;
begin
  select * into r from webhooks.erasures e
  where e.site_id = erase_subject.site_id and e.subject = erase_subject.subject for update skip locked;
  if not found then
    return null;
  end if;
  lock table webhooks.replays in exclusive mode;
  if r.pending = 'cancel' then
    perform webhooks.cancel(e.event_id) from webhooks.events e
    where e.site_id = r.site_id and left(e.subject, 400) = left(r.subject, 400) and e.subject = r.subject
      and e.event_id <= r.to_event_id and exists (select from webhooks.backlog b where b.event_id = e.event_id);
  end if;
  select array_agg(e.event_id) filter (where e.event_id <= settled and not k.waits),
    array_agg(e.event_id) filter (where e.event_id > settled or k.waits)
  into ripe, rest
  from webhooks.events e
  cross join lateral (select exists (select from webhooks.backlog b where b.event_id = e.event_id) as waits) k
  where e.site_id = r.site_id and left(e.subject, 400) = left(r.subject, 400) and e.subject = r.subject
    and e.event_id <= r.to_event_id;
  update webhooks.attempts a set response = null, evidence = null
  where a.event_id = any (ripe) and num_nonnulls(a.response, a.evidence) > 0;
  get diagnostics n = row_count;
  r.answers := r.answers + n;
  update webhooks.events e set payload = '{"pghookd":"erased"}'
  where e.event_id = any (ripe) and not webhooks.is_erased(e.payload);
  get diagnostics n = row_count;
  r.events := r.events + n;
  if rest is null and r.asked_at < now() - interval '2 minutes'
    and pg_snapshot_xmin(pg_current_snapshot()) >= r.asked_xid then
    perform webhooks.erase_excerpts(r.site_id);  -- of emails that were written meanwhile
    delete from webhooks.erasures e where e.site_id = r.site_id and e.subject = r.subject;
    insert into webhooks.operations (actor, what, detail)
    values (r.actor, 'erased', jsonb_build_object('site_id', r.site_id, 'events', r.events, 'answers', r.answers,
      'subject_sha256', encode(sha256(convert_to(r.subject, 'UTF8')), 'hex')));
  else
    update webhooks.erasures e set events = r.events, answers = r.answers
    where e.site_id = r.site_id and e.subject = r.subject;
  end if;
  return n;
end $$;
comment on function webhooks.erase_subject is
  'Erases the settled events of a subject that is being erased, and leaves a receipt once nothing is left; the '
  'daemon''s own';
