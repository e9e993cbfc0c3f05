-- Suspends mails to an address for a while, since a mail server rejected it as unknown. $1 text: the address; $2
-- timestamptz: until when; $3 text: why.
with noted as (
  insert into webhooks.operations (what, detail)
  values ('suspend_owner', jsonb_build_object('owner_email', lower($1), 'until', $2::timestamptz)))
insert into webhooks.owners (owner_email, suspended_until, suspended_reason) values (lower($1), $2, $3)
on conflict (owner_email) do update
set suspended_until = excluded.suspended_until, suspended_reason = excluded.suspended_reason
