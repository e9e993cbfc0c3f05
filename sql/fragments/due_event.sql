-- The columns of event e for row b of a page of backlog. "exists": the event is there, and so are its partitions.
-- Payloads come along up to 100,000 bytes in all; those of at most 16 KB beyond that are loaded apart (load_payloads),
-- by payload_bytes.
e.type, e.created_at, e.endpoint_id as only_endpoint_id,
e.event_id is not null and (select d.there from days d where d.day = b.day) as exists,
case when e.payload_bytes is not null and sum(e.payload_bytes) over (rows unbounded preceding) <= 100000
  then e.payload end as payload,
e.payload_bytes,
--include event_options
as options
