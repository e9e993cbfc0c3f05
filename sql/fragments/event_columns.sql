-- The columns of event e as the reader gets them: the payload if it is small enough, and the options.
e.event_id, e.site_id, e.type, e.created_at, e.endpoint_id,
case when
  --include payload_is_inline
  then e.payload end as payload,
--include event_options
as options
