-- The state of a delivery in backlog, its reason and its time, by its row b and the switch of its endpoint p (null:
-- deleted). The daemon holds and releases rows in pages: a row counts as the switch says, written so or not yet.
case when b.reason <> 'quarantined' and not p.enabled then 'held'
     when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'waiting' else b.state end as state,
case when b.reason <> 'quarantined' and not p.enabled then 'disabled'
     when b.reason <> 'quarantined' and p.enabled and b.state = 'held' then 'queued' else b.reason end as reason,
case when p.enabled is distinct from false then b.next_attempt_at end as next_attempt_at
