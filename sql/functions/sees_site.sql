-- True if the caller may see a site through the functions of its log: a member of webhooks_site sees the site that
-- webhooks.site_id names and no other; other roles that may call the functions see all sites.
-- session_user and role: in a SECURITY DEFINER function current_user is its owner.
create or replace function webhooks.sees_site(site_id text) returns boolean
language sql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  with caller as (
    select case current_setting('role') when 'none' then session_user else current_setting('role') end as name)
  select sees_site.site_id = current_setting('webhooks.site_id', true)
    or not exists (
      select from pg_roles r, caller c
      where r.rolname = 'webhooks_site' and pg_has_role(c.name::name, r.oid, 'member'))
    or exists (
      select from pg_roles r, caller c
      where r.rolname in ('webhooks_reader', 'webhooks_support', 'webhooks_admin')
        and pg_has_role(c.name::name, r.oid, 'member'))
$$;
comment on function webhooks.sees_site is
  'True if the caller may see a site: a member of webhooks_site sees only the one that webhooks.site_id names';
