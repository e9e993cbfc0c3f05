-- Events that nobody took, by day and name, newest day first. $1 int: days; $2 int: rows.
select day, what, name, nearest, events, first_at, last_at from webhooks.unclaimed
where day > current_date - $1::int
order by day desc, events desc
limit $2
