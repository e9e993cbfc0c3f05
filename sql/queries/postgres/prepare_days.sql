-- Makes the first partitions of a new schema, without which an insert would fail; does nothing to others.
select webhooks.prepare_days()
