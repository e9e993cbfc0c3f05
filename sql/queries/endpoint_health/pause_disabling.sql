-- Stops the clocks that lead to disabled endpoints, while so many sites fail at once that the cause is probably on our
-- side; each for a bounded time in all. $1 bigint: microseconds to add; $2 bigint: the bound, in microseconds.
update webhooks.incidents set
  marks = jsonb_set(marks, '{paused_us}', to_jsonb(least($2, coalesce((marks->>'paused_us')::bigint, 0) + $1)))
where state in ('shaky', 'failing', 'partly_failing', 'flapping') and coalesce((marks->>'paused_us')::bigint, 0) < $2
