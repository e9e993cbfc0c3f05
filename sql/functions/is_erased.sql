-- True if the payload of an event was erased. Such an event is never delivered again.
create or replace function webhooks.is_erased(payload json) returns boolean
language sql stable parallel safe
return case when pg_column_size(payload) < 64 then payload::text = '{"pghookd":"erased"}' else false end;
comment on function webhooks.is_erased is
  'True if the payload of an event was erased, as retention.payload_days says; such an event is never delivered again';
