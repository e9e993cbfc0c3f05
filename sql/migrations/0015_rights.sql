-- Who may see and do what: readers see no tokens, erasers take sensible ages, one address cannot be retried without pause.
-- min_daemon: 0.1.0

-- What readers see ---------------------------------------------------------------------------------------------------

create or replace view webhooks.endpoint_health as
select p.endpoint_id, p.site_id,
  case when (select has_column_privilege('webhooks.endpoints'::regclass, 'url', 'select')) then p.url
    else substring(p.url from '^[^/]+//') || substring(p.url from '^[^/]+//(?:[^/?#\\]*@)?([^/?#\\]*)') end as url,
  p.enabled, p.disabled_reason,
  case when not p.enabled then 'disabled' else coalesce(i.state, 'healthy') end as health,
  case when i.state <> 'healthy' then i.first_failure_at end as failing_since,
  i.last_success_at, i.last_failure_at, i.last_status, i.last_error,
  b.waiting, b.parked, b.held, d.dead,
  case when p.enabled then i.disable_at end as disable_at
from webhooks.endpoints p
left join webhooks.incidents i using (endpoint_id)
cross join lateral (
  select count(*) filter (where r.state = 'waiting') as waiting, count(*) filter (where r.state = 'parked') as parked,
    count(*) filter (where r.state = 'held') as held
  from webhooks.backlog w
  cross join lateral (  -- rows follow the endpoint's switch in pages: what they will be is what counts
    select case when w.reason = 'quarantined' or not p.enabled then 'held'
                when w.state = 'held' then 'waiting' else w.state end as state) r
  where w.endpoint_id = p.endpoint_id) b
cross join lateral (select count(*) as dead from webhooks.dead where endpoint_id = p.endpoint_id) d;
comment on view webhooks.endpoint_health is 'One row per endpoint: whether it works, since when not, and what waits for it. Of the url, scheme and host unless the caller may read endpoints.url: path and query can be credentials';

create view webhooks.audit as
select at, actor, what, detail - 'owner_email' as detail from webhooks.operations;
comment on view webhooks.audit is 'Who did what, and when: operations without the addresses of owners, for readers';

-- As before, but the text of a filter is shown only to a caller who may read endpoints.filter.
create or replace function webhooks.explain(event_id bigint) returns table (endpoint_id bigint, at timestamptz, what text, detail text)
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  e webhooks.events;
  nearest text;
  -- The caller, since current_user is the owner in here.
  caller constant name := case current_setting('role') when 'none' then session_user else current_setting('role') end;
  sees constant boolean := has_column_privilege(caller, 'webhooks.endpoints', 'filter', 'select');
begin
  select * into e from webhooks.events v where v.event_id = explain.event_id;
  if not found then
    return query select null::bigint, null::timestamptz, 'unknown', format('there is no event %s', explain.event_id);
    return;
  end if;
  return query select null::bigint, e.created_at, 'inserted',
    format('%s of site %s, %s', e.type, e.site_id, webhooks.webhook_id(e.event_id, e.created_at));
  if not exists (select from webhooks.sites s where s.site_id = e.site_id) then
    return query select null::bigint, null::timestamptz, 'no_site', format('site %s is not known', e.site_id);
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
            b.attempts || ' attempts', 'next at ' || s.next_attempt_at, 'last answer ' || concat_ws(' ', a.outcome, a.status, a.error))
        when d.event_id is not null then
          concat_ws(', ', d.reason, d.attempts || ' attempts', 'last answer ' || concat_ws(' ', a.outcome, a.status, a.error))
        when a.outcome = 'delivered' then
          concat_ws(', ', format('at attempt %s, answered %s in %s ms', a.attempt, a.status, round(a.duration_ms)),
            case when m.asked and m.says is null then 'the filter of the endpoint says neither true nor false of it' || shown.filter end)
        when e.endpoint_id is not null and e.endpoint_id <> p.endpoint_id then format('the event is for endpoint %s only', e.endpoint_id)
        when e.event_id <= p.from_event_id then 'the endpoint was made after the event'
        when e.endpoint_id is null and not webhooks.takes(p.event_types, e.type) then format('the endpoint takes %s', array_to_string(p.event_types, ', '))
        when m.asked and m.says is false then 'the filter of the endpoint leaves it out' || shown.filter
        when not p.enabled then format('the endpoint is disabled (%s): the event will be held', p.disabled_reason)
        else 'the daemon has not settled it yet'
      end
    from webhooks.endpoints p
    cross join lateral (select case when sees then ': ' || p.filter::text else '' end as filter) shown
    left join webhooks.backlog b on b.event_id = e.event_id and b.endpoint_id = p.endpoint_id
    cross join lateral (select
      case when b.reason <> 'quarantined' and not p.enabled then 'held'
           when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'waiting' else b.state end as state,
      case when b.reason <> 'quarantined' and not p.enabled then 'disabled'
           when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'queued' else b.reason end as reason,
      case when p.enabled is distinct from false then b.next_attempt_at end as next_attempt_at) s
    left join webhooks.dead d on d.event_id = e.event_id and d.endpoint_id = p.endpoint_id
    left join lateral (
      select * from webhooks.attempts t where t.event_id = e.event_id and t.endpoint_id = p.endpoint_id
      order by t.attempt desc limit 1) a on true
    left join lateral (
      select true as asked,
        case when octet_length(e.payload::text) <= 1000000 then webhooks.matches(e.payload, p.filter) end as says
      where p.filter is not null and e.endpoint_id is null and b.event_id is null and d.event_id is null
        and e.event_id > p.from_event_id and webhooks.takes(p.event_types, e.type)
      offset 0) m on true
    where p.site_id = e.site_id
    order by p.endpoint_id;
end $$;

-- What the daemon may erase ------------------------------------------------------------------------------------------
-- As before, but an age that is not above 0 is refused: it would make every event old enough.

create or replace function webhooks.erase_payloads(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz;
  settled bigint := coalesce((select min(s.floor) from webhooks.shards s), 0);
  ids bigint[];
  page record;
begin
  if (days > 0 and days <> 'NaN') is not true then
    raise exception 'days is a number above 0, not %', days using errcode = 'invalid_parameter_value';
  end if;
  bound := now() - make_interval(secs => days * 86400);
  insert into webhooks.upkeep (what) values ('payloads') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'payloads' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  end if;
  lock table webhooks.replays in exclusive mode;
  select count(*) as seen, max(k.event_id) as last, bool_or(k.created_at < bound) as has_old,
    array_agg(k.event_id) filter (where k.ripe) as ripe, min(k.event_id) filter (where not (k.ripe or k.gone)) as left_over
  into page
  from (
    select e.event_id, e.created_at, g.gone,
      e.created_at < bound and e.event_id <= settled and not g.gone
        and not exists (select from webhooks.backlog b where b.event_id = e.event_id) as ripe
    from (
      select v.event_id, v.created_at, v.payload from webhooks.events v
      where v.event_id > u.after_event_id order by v.event_id limit looks) e
    cross join lateral (select webhooks.is_erased(e.payload) as gone) g) k;
  ids := coalesce(page.ripe, '{}');
  update webhooks.events v set payload = '{"pghookd":"erased"}'
  where v.event_id = any (ids) and v.event_id > u.after_event_id and v.event_id <= page.last;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then page.last else coalesce(u.again_from - 1, page.last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    ended_at = case when ended then now() end
  where k.what = 'payloads';
  return next;
end $$;

create or replace function webhooks.erase_responses(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz;
  last bigint;
  page record;
begin
  if (days > 0 and days <> 'NaN') is not true then
    raise exception 'days is a number above 0, not %', days using errcode = 'invalid_parameter_value';
  end if;
  bound := now() - make_interval(secs => days * 86400);
  insert into webhooks.upkeep (what) values ('responses') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'responses' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  elsif u.ended_at is not null or u.began_at is null then  -- a walk begins
    if exists (select from webhooks.replays r where coalesce(r.ended_at, now()) >= u.began_at) then
      u.after_event_id := 0;  -- old events have new attempts
    end if;
    u.began_at := now();
    u.again_from := (select min(b.event_id) from webhooks.backlog b);  -- these will have more
    u.after_event_id := least(u.after_event_id, u.again_from - 1);
  end if;
  select max(t.event_id) into last from (
    select a.event_id from webhooks.attempts a where a.event_id > u.after_event_id order by a.event_id limit looks) t;
  select count(*) as seen, coalesce(bool_or(a.attempted_at < bound), false) as has_old,
    min(a.event_id) filter (where a.response is not null and a.attempted_at >= bound) as left_over
  into page
  from webhooks.attempts a where a.event_id > u.after_event_id and a.event_id <= last;
  update webhooks.attempts a set response = null
  where a.event_id > u.after_event_id and a.event_id <= last and a.response is not null and a.attempted_at < bound;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then last else coalesce(u.again_from - 1, last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    began_at = u.began_at, ended_at = case when ended then now() end
  where k.what = 'responses';
  return next;
end $$;

-- Waits --------------------------------------------------------------------------------------------------------------
-- An owner who retries without pause has us send 100 requests at once to a host that may be somebody else's.

update webhooks.endpoints p
set retry_schedule = n.schedule
from (
  select q.endpoint_id, string_agg(case when w.wait_s < 1 then '1s' else s.step end, ',' order by s.n) as schedule, min(w.wait_s) as least_s
  from webhooks.endpoints q
  cross join lateral regexp_split_to_table(trim(q.retry_schedule), ' *, *') with ordinality s(step, n)
  cross join lateral (select rtrim(s.step, 'mshd')::numeric * case ltrim(s.step, '0123456789.')
    when 'ms' then 0.001 when 's' then 1 when 'm' then 60 when 'h' then 3600 else 86400 end as wait_s) w
  group by q.endpoint_id) n
where n.endpoint_id = p.endpoint_id and n.least_s < 1;

alter table webhooks.endpoints
  drop constraint "retry_schedule is waits such as 5s,5m,2h,1d",
  add constraint "retry_schedule is none or waits of 1s or more such as 5s,2h,1d" check (
    retry_schedule ~ '^ *none *$'
    or retry_schedule ~ ('^ *([0-9]{1,6}(\.[0-9]{1,3})?(ms|s)|[0-9]{1,4}(\.[0-9]{1,3})?m|[1-6]?[0-9]{1,2}(\.[0-9]{1,3})?h|([12]?[0-9](\.[0-9]{1,3})?|30)d)'
      || '( *, *([0-9]{1,6}(\.[0-9]{1,3})?(ms|s)|[0-9]{1,4}(\.[0-9]{1,3})?m|[1-6]?[0-9]{1,2}(\.[0-9]{1,3})?h|([12]?[0-9](\.[0-9]{1,3})?|30)d)){0,99} *$')
    and retry_schedule !~ '(^|[ ,])(0+(\.0+)?[hd]|0*(\.(0[0-9]?|00[0-9]|01[0-6]))?m([ ,]|$)|0+(\.[0-9]+)?s|0*[0-9]{1,3}(\.[0-9]+)?ms)');
comment on column webhooks.endpoints.retry_schedule is 'The wait after failure 1, 2, ..., such as 5s,5m,2h,1d, each of 1s or more; none: one attempt and no other; null: as the setting retry.schedule says. retry.age_max_s bounds it still';

-- Producers ----------------------------------------------------------------------------------------------------------
-- With text among the types, a literal and an untyped parameter find their function as before.

create function webhooks.emit(
  site_id text, type text, payload jsonb, subject text default null, ordering_key text default null,
  dedupe_key text default null, supersede_key text default null, traceparent text default null,
  deliver_after timestamptz default null, deliver_before timestamptz default null) returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.emit(site_id, type, payload::json, subject, ordering_key, dedupe_key, supersede_key, traceparent,
    deliver_after, deliver_before)
$$;
comment on function webhooks.emit(text, text, jsonb, text, text, text, text, text, timestamptz, timestamptz) is
  'emit for a payload of type jsonb; it is sent as Postgres writes it: keys in an order of its own, each once';

create function webhooks.emit(
  site_id text, type text, payload text, subject text default null, ordering_key text default null,
  dedupe_key text default null, supersede_key text default null, traceparent text default null,
  deliver_after timestamptz default null, deliver_before timestamptz default null) returns bigint
language sql volatile security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.emit(site_id, type, payload::json, subject, ordering_key, dedupe_key, supersede_key, traceparent,
    deliver_after, deliver_before)
$$;
comment on function webhooks.emit(text, text, text, text, text, text, text, text, timestamptz, timestamptz) is
  'emit for a payload that is JSON in a text, a literal or a parameter without a type';

-- A trigger of ours is a guest in the application's statement. What is wrong with the trigger, its table, the caller's
-- rights or a row is warned of and makes no event. What would end any statement (a deadlock, a full disk) still ends it.

create or replace function webhooks.emit_changes() returns trigger
language plpgsql security invoker set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  kind constant text := case tg_op when 'INSERT' then tg_argv[1] when 'UPDATE' then tg_argv[2] end;
  omitted constant text[] := coalesce(tg_argv[3:], '{}');
  picks constant text := 'select r.%I::text as site_id, to_json(s.*)::text as said from %I r, lateral (select %s) s';
  columns text;
  unknown text;
  before name;
  after name;
begin
  if tg_level <> 'STATEMENT' or tg_when <> 'AFTER' or tg_op not in ('INSERT', 'UPDATE') then
    raise exception 'emit_changes is for triggers AFTER INSERT or AFTER UPDATE, FOR EACH STATEMENT'
      using errcode = 'trigger_protocol_violated';
  elsif tg_argv[0] is null or kind is null then
    raise exception 'emit_changes takes the site''s column, the type of new rows and that of changed rows'
      using errcode = 'trigger_protocol_violated';
  elsif kind !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(kind) > 128 then
    raise exception '% is not an event type', quote_literal(kind) using errcode = 'invalid_parameter_value';
  end if;
  select t.tgoldtable, t.tgnewtable into before, after from pg_trigger t where t.tgrelid = tg_relid and t.tgname = tg_name;
  if after is null or tg_op = 'UPDATE' and before is null then
    raise exception 'the trigger does not name its transition tables' using errcode = 'trigger_protocol_violated';
  end if;
  -- A column that was renamed must not be sent although it was to be left out.
  select name into unknown from unnest(tg_argv[0] || omitted) name
  where not exists (select from pg_attribute where attrelid = tg_relid and attname = name and attnum > 0 and not attisdropped);
  if found then
    raise exception 'there is no column % in %', quote_ident(unknown), tg_relid::regclass using errcode = 'undefined_column';
  end if;
  -- By columns, and not by taking members out of a row's JSON: that would choke on \u0000 in a column of type json.
  select string_agg(format('r.%I', attname), ', ' order by attnum) into columns
  from pg_attribute where attrelid = tg_relid and attnum > 0 and not attisdropped and attname <> all (omitted);
  execute 'insert into webhooks.events (site_id, type, payload) select site_id, $1, said::json from ('
    || format(picks, tg_argv[0], after, columns)
    || case tg_op when 'UPDATE' then ' except all ' || format(picks, tg_argv[0], before, columns) else '' end
    || ') c where length(site_id) between 1 and 200'
    using kind;
  return null;
exception when others then
  -- Class 40 is the fate of the whole transaction, 53 to 58 the trouble of the server.
  if left(sqlstate, 2) in ('40', '53', '57', '58', 'XX') or sqlstate = '55P03' then
    raise;
  end if;
  raise warning 'trigger % on % made no events: %', tg_name, tg_relid::regclass, sqlerrm
    using errcode = sqlstate, hint = 'webhooks.watch_table makes triggers that fit';
  if tg_op = 'DELETE' then
    return old;  -- null would keep a row from being changed, were this a trigger BEFORE each row
  end if;
  return new;
end $$;
comment on function webhooks.emit_changes is
'Turns the rows that a statement inserts or updates into events, one each, in one INSERT. webhooks.watch_table makes the
triggers. Arguments: the column with the site_id, the type of new rows, the type of changed rows, then the columns to leave
out. The payload is the row as to_json writes it. A row whose site is null makes no event, nor does an update that changes
only columns left out. The application''s statement never fails by it: what is wrong is a WARNING, and no event. Whoever
changes the table needs the role webhooks_producer.';

create function webhooks.watch_table(watched regclass, site_column text, type_prefix text, leave_out text[] default '{}') returns void
language plpgsql security invoker set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  omitted constant text[] := coalesce(leave_out, '{}');
  arguments text;
  unknown text;
begin
  if type_prefix is null or type_prefix !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(type_prefix) > 120 then
    raise exception 'type_prefix is identifiers joined by dots, at most 120 characters, not %', coalesce(type_prefix, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  select name into unknown from unnest(site_column || omitted) name
  where not exists (select from pg_attribute where attrelid = watched and attname = name and attnum > 0 and not attisdropped);
  if found then
    raise exception 'there is no column % in %', coalesce(quote_ident(unknown), 'null'), watched using errcode = 'undefined_column';
  end if;
  select string_agg(quote_literal(a), ', ' order by n) into arguments
  from unnest(array[site_column, type_prefix || '_created', type_prefix || '_updated'] || omitted) with ordinality u(a, n);
  execute format('create or replace trigger webhooks_created after insert on %s referencing new table as new_rows'
    ' for each statement execute function webhooks.emit_changes(%s)', watched, arguments);
  execute format('create or replace trigger webhooks_updated after update on %s referencing old table as old_rows new table as new_rows'
    ' for each statement execute function webhooks.emit_changes(%s)', watched, arguments);
end $$;
comment on function webhooks.watch_table is
'Makes events of a table''s new and changed rows: webhooks.watch_table(''orders'', ''shop_id'', ''order'', ''{card_token}'')
sends order_created and order_updated for the site in shop_id, without card_token. Called again it replaces its triggers,
webhooks_created and webhooks_updated; drop these to end it. Its caller owns the table, and is a member of
webhooks_producer as is whoever changes the table.';

revoke all on function webhooks.emit(text, text, jsonb, text, text, text, text, text, timestamptz, timestamptz),
  webhooks.emit(text, text, text, text, text, text, text, text, timestamptz, timestamptz), webhooks.watch_table from public;
