-- Moves the sequence into a day once no open transaction is left that may not know its partition; false: not yet, or
-- there already. $1 int: the day.
select webhooks.enter_day($1)
