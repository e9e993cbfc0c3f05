-- Counts the attempts of the next finished hour, for webhooks.endpoint_activity. $1 float8: seconds after the end of an
-- hour in which its attempts may still be recorded. Returns the hour; null: nothing is due. Lives on attempts_by_time.
select webhooks.roll_up_hour(make_interval(secs => $1))
