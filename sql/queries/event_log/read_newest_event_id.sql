-- The newest event_id handed out. Half of a mark: read before the storing transaction has an xid.
select last_value - (not is_called)::int from webhooks.events_event_id_seq
