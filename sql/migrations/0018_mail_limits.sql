-- Limits on emails: by mailbox, whatever its spelling, and by domain. Endpoints that the platform's own policy blocks.
-- min_daemon: 0.1.0

alter table webhooks.emails
  add column mailbox text not null default '',
  add column mail_domain text not null default '';
update webhooks.emails set mailbox = lower(owner_email), mail_domain = split_part(lower(owner_email), '@', 2)
where state = 'queued' or created_at > now() - interval '1 day';
create index emails_of_mailbox on webhooks.emails (mailbox, created_at);
create index dead_of_platform on webhooks.dead (since) where reason in ('too_large', 'invalid');
comment on column webhooks.emails.mailbox is 'One spelling for all spellings of the address: what the limits on emails are counted by';
comment on column webhooks.emails.mail_domain is 'The registrable domain of the address: the mailer''s turns go by it';

-- What the platform alone can mend is no endpoint's trouble: not an event that cannot be sent, nor a destination that the
-- platform's own policy blocks (state `blocked`).
delete from webhooks.incidents where last_outcome = 'unsent' and last_error in ('too_large', 'invalid') and state = 'shaky';
alter table webhooks.incidents
  drop constraint "state is a known one",
  add constraint "state is a known one"
    check (state in ('healthy', 'shaky', 'failing', 'partly_failing', 'flapping', 'disabled', 'blocked'));

-- As in 0011, and also what mails to the operator say of the site.
create or replace function webhooks.forget_owner(owner_email text, site_id text) returns bigint
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  whose constant text := lower(owner_email);
  part text;
  total bigint := 0;
  n bigint;
begin
  if not exists (select from webhooks.sites s where lower(s.owner_email) = whose) then
    delete from webhooks.emails e where e.owner_email = whose;
    get diagnostics total = row_count;
    delete from webhooks.owners o where o.owner_email = whose;
    get diagnostics n = row_count;
    total := total + n;
    update webhooks.operations o set detail = '{}' where lower(o.detail ->> 'owner_email') = whose;
  end if;
  -- Mails to others, and to owners of further sites: what they say of this one.
  foreach part in array array['sections', 'faults'] loop
    delete from webhooks.emails e
    where e.digest @> jsonb_build_object(part, jsonb_build_array(jsonb_build_object('site_id', forget_owner.site_id)))
      and not exists (select from jsonb_array_elements(e.digest -> part) x where x ->> 'site_id' is distinct from forget_owner.site_id);
    get diagnostics n = row_count;
    total := total + n;
    update webhooks.emails e
    set subject = null, digest = jsonb_set(e.digest, array[part],
      (select jsonb_agg(x) from jsonb_array_elements(e.digest -> part) x where x ->> 'site_id' is distinct from forget_owner.site_id))
    where e.digest @> jsonb_build_object(part, jsonb_build_array(jsonb_build_object('site_id', forget_owner.site_id)));
  end loop;
  return total;
end $$;
