-- Explains for each endpoint of an event's site why the event went there, or did not. Producers call it as well: it
-- shows no URL, payload, answer or address. The text of a filter is for callers that may read endpoints.filter, the
-- details of an error, which may name hosts, for those that may read attempts.error.
-- needs: matches, nearest_name, takes, webhook_id
create or replace function webhooks.explain(event_id bigint) returns table (endpoint_id bigint, at timestamptz, what text, detail text)
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  e webhooks.events;
  nearest text;
  caller constant name :=
    --include caller
  ;
  sees constant boolean := has_column_privilege(caller, 'webhooks.endpoints', 'filter', 'select');
  sees_errors constant boolean := has_column_privilege(caller, 'webhooks.attempts', 'error', 'select');
begin
  select * into e from webhooks.events v where v.event_id = explain.event_id;
  if not found then
    return query select null::bigint, null::timestamptz, 'unknown', format('there is no event %s', explain.event_id);
    return;
  end if;
  return query select null::bigint, e.created_at, 'inserted',
    format('%s of site %s, %s', e.type, e.site_id, webhooks.webhook_id(e.event_id, e.created_at));
  if not exists (select from webhooks.sites s where s.site_id = e.site_id) then
    return query select null::bigint, null::timestamptz, 'no_site',
      concat('site ', e.site_id, ' is not known', '; the nearest is ' || webhooks.nearest_name('site', e.site_id));
  elsif not exists (select from webhooks.endpoints p where p.site_id = e.site_id) then
    return query select null::bigint, null::timestamptz, 'no_endpoint', format('site %s has no endpoint', e.site_id);
  elsif e.endpoint_id is null
    and not exists (select from webhooks.endpoints p where p.site_id = e.site_id and webhooks.takes(p.event_types, e.type)) then
    select t into nearest from webhooks.endpoints p, unnest(p.event_types) t where p.site_id = e.site_id and t is not null
    order by (select count(*) from generate_series(1, length(e.type)) n where left(t, n) = left(e.type, n)) desc, t limit 1;
    return query select null::bigint, null::timestamptz, 'no_taker',
      format('no endpoint of site %s takes %s; the nearest type that one takes is %s', e.site_id, e.type, coalesce(nearest, 'none'));
  end if;
  return query
    select p.endpoint_id, coalesce(a.attempted_at, d.since, b.since),
      case
        when b.event_id is not null then s.state
        when d.event_id is not null then 'dead'
        when a.outcome = 'delivered' then 'delivered'
        when e.endpoint_id is not null and e.endpoint_id <> p.endpoint_id then 'not_addressed'
        when e.event_id <= p.from_event_id then 'too_young'
        when e.endpoint_id is null and not webhooks.takes(p.event_types, e.type) then 'type_not_taken'
        when m.asked and m.says is false then 'filtered'
        when not p.enabled then 'disabled'
        else 'not_read_yet'
      end,
      case
        when b.event_id is not null then
          concat_ws(', ', s.reason, case when s.reason = 'filter_slow' then 'the filter of the endpoint takes too long' || shown.filter end,
            b.attempts || ' attempts', 'next at ' || s.next_attempt_at, shown.answer, 'revision ' || a.revision)
        when d.event_id is not null then
          concat_ws(', ', d.reason,
            case when d.reason = 'invalid' and e.type !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$'
              then 'a type is letters, digits and _, joined by dots' end,
            d.attempts || ' attempts', shown.answer, 'revision ' || a.revision)
        when a.outcome = 'delivered' then
          concat_ws(', ', format('at attempt %s, answered %s in %s ms', a.attempt, a.status, round(a.duration_ms)),
            'revision ' || a.revision,
            case when m.asked and m.says is null then 'the filter of the endpoint says neither true nor false of it' || shown.filter end)
        when e.endpoint_id is not null and e.endpoint_id <> p.endpoint_id then format('the event is for endpoint %s only', e.endpoint_id)
        when e.event_id <= p.from_event_id then 'the endpoint was made after the event'
        when e.endpoint_id is null and not webhooks.takes(p.event_types, e.type) then format('the endpoint takes %s', array_to_string(p.event_types, ', '))
        when m.asked and m.says is false then 'the filter of the endpoint leaves it out' || shown.filter
        when not p.enabled then format('the endpoint is disabled (%s): the event will be held', p.disabled_reason)
        else 'the daemon has not settled it yet'
      end
    from webhooks.endpoints p
    left join webhooks.backlog b on b.event_id = e.event_id and b.endpoint_id = p.endpoint_id
    cross join lateral (select
      --include delivery_state
    ) s
    left join webhooks.dead d on d.event_id = e.event_id and d.endpoint_id = p.endpoint_id
    left join lateral (
      select * from webhooks.attempts t where t.event_id = e.event_id and t.endpoint_id = p.endpoint_id
      order by t.attempt desc limit 1) a on true
    cross join lateral (
      select case when sees then ': ' || p.filter::text else '' end as filter,
        'last answer ' || nullif(concat_ws(' ', a.outcome, a.status,
          case when sees_errors then a.error else split_part(a.error, ':', 1) end), '') as answer) shown
    left join lateral (
      select true as asked,
        case when octet_length(e.payload::text) <= 1000000 then webhooks.matches(e.payload, p.filter) end as says
      where p.filter is not null and e.endpoint_id is null and b.event_id is null and d.event_id is null
        and e.event_id > p.from_event_id and webhooks.takes(p.event_types, e.type)
      offset 0) m on true
    where p.site_id = e.site_id
    order by p.endpoint_id;
end $$;
comment on function webhooks.explain is 'Why an event went to each endpoint of its site, or did not';
