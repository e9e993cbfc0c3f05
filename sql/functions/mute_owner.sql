-- Stops emails to an owner for a while, for operators.
create or replace function webhooks.mute_owner(owner_email text, until timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  insert into webhooks.owners as o (owner_email, muted_until) values (lower(mute_owner.owner_email), until)
  on conflict on constraint owners_pkey do update set muted_until = excluded.muted_until;
  insert into webhooks.operations (what, detail)
  values ('mute_owner', jsonb_build_object('owner_email', lower(mute_owner.owner_email), 'until', until));
end $$;
comment on function webhooks.mute_owner is 'No mails to an owner until then; null: mails again';
