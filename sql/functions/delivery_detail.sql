-- The attempts at one delivery, for a platform's own settings page, each with the URL that it went to. The nearest
-- change of the URL has it: the newest one up to the revision of the attempt, or else the next one. Without any, the
-- endpoint has it. If the revisions of the time have been pruned, the URL is null: it may have changed since. Answers
-- come only where they are asked for, and they and the headers in the evidence only to callers that may read them or
-- are the site itself. A site sees of its URLs what an email shows, and not the address of the operator's proxy.
-- needs: sees_site
create or replace function webhooks.delivery_detail(event_id bigint, endpoint_id bigint, answers boolean default false)
returns table (attempt smallint, attempted_at timestamptz, duration_ms real, outcome text, status smallint, error text,
  cause text, revision int, url text, evidence jsonb, response bytea)
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  caller constant name :=
    --include caller
  ;
  sees_url constant boolean := has_column_privilege(caller, 'webhooks.endpoints', 'url', 'select');
  sees_answer constant boolean := has_column_privilege(caller, 'webhooks.attempts', 'response', 'select');
  is_site constant boolean := not has_column_privilege(caller, 'webhooks.attempts', 'outcome', 'select');
begin
  return query
    select a.attempt, a.attempted_at, a.duration_ms, a.outcome, a.status, a.error, a.cause, a.revision,
      case when sees_url then p.url
        when is_site then regexp_replace(p.url, '^(\w+://)([^/?#]*@)?([^?#]*).*$', '\1\3')
        else
        --include scheme_and_host
      end,
      case when sees_answer then a.evidence
        when not is_site then a.evidence - '{headers,headers_left_out}'::text[]
        when a.evidence ? 'via' then a.evidence - 'address'
        else a.evidence
      end,
      case when answers and (sees_answer or is_site) then a.response end
    from webhooks.attempts a
    left join webhooks.endpoints e on e.endpoint_id = a.endpoint_id
    left join lateral (  -- an endpoint may have moved to another site meanwhile
      select r.site_id from webhooks.endpoint_revisions r
      where r.endpoint_id = a.endpoint_id and r.revision <= a.revision + 1
      order by r.revision > a.revision, r.revision desc limit 1) o on true
    left join lateral (
      select r.revision, r.changed -> 'url' ->> (r.revision <= a.revision)::int as url
      from webhooks.endpoint_revisions r
      where r.endpoint_id = a.endpoint_id and r.changed ? 'url'
      order by r.revision > a.revision, abs(r.revision - a.revision) limit 1) c on true
    left join lateral (
      select case when c.revision is null then e.url else c.url end as url
      where o.site_id is not null and webhooks.sees_site(o.site_id)) p on true
    where a.event_id = delivery_detail.event_id and a.endpoint_id = delivery_detail.endpoint_id
      and webhooks.sees_site(a.site_id)
    order by a.attempt;
end $$;
comment on function webhooks.delivery_detail is
  'The attempts at one delivery: cause, the URL that the endpoint had, evidence of a failure, and the answer where it '
  'is asked for. A caller that may not read endpoints.url sees scheme and host, the site itself the path as well; one '
  'that may not read answers sees no headers';
