-- While so much fails at once that the fault is probably ours, no clock that leads to an endpoint being switched off
-- runs. $1 bigint: microseconds to add.
update webhooks.incidents set
  marks = jsonb_set(marks, '{paused_us}', to_jsonb(coalesce((marks->>'paused_us')::bigint, 0) + $1))
where state in ('shaky', 'failing', 'partly_failing', 'flapping')
