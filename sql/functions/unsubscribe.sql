-- Ends emails to the owner whose link in an email has this token.
create or replace function webhooks.unsubscribe(token text) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  whose text;
begin
  update webhooks.owners o set unsubscribed_at = coalesce(o.unsubscribed_at, now())
  where o.unsubscribe_token = token returning o.owner_email into whose;
  if not found then
    raise exception 'the token is nobody''s' using errcode = 'no_data_found';
  end if;
  insert into webhooks.operations (what, detail) values ('unsubscribe', jsonb_build_object('owner_email', whose));
end $$;
comment on function webhooks.unsubscribe is
  'Ends the mails to the owner whose token it is, as the link in each mail does';
