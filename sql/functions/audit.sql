-- View for readers: the operations without the addresses of owners.
create or replace view webhooks.audit as
select at, actor, what, detail - 'owner_email' as detail from webhooks.operations;
comment on view webhooks.audit is
  'One row per action with its actor and time: operations without the addresses of owners, for readers';
