-- Marks a day as leaving, unless something keeps it. $1 int: the day. Returns what keeps it, none if it may go.
select webhooks.leave_day($1)
