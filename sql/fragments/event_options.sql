-- The columns of event e that are seldom set, as one JSON object; null if none is set. Times are seconds since 1970.
case
  when num_nonnulls(e.traceparent, e.ordering_key, e.deliver_after, e.deliver_before, e.dedupe_key, e.supersede_key) > 0
  then jsonb_strip_nulls(jsonb_build_object(
    'traceparent', e.traceparent, 'ordering_key', e.ordering_key,
    'dedupe_key', e.dedupe_key, 'supersede_key', e.supersede_key,
    'payload_bytes', case
      when e.supersede_key is not null
        and (pg_column_compression(e.payload) is not null or pg_column_size(e.payload) > 16384)
      then octet_length(e.payload::text) end,
    'deliver_after', case
      when e.deliver_after > '-infinity' then extract(epoch from least(e.deliver_after, '9999-01-01')) end,
    'wait_s', case
      when e.deliver_after > now() then extract(epoch from least(e.deliver_after, '9999-01-01') - now()) end,
    'deliver_before', case
      when e.deliver_before < 'infinity' then extract(epoch from greatest(e.deliver_before, '1970-01-01')) end))
end
