-- Makes the partitions of one day. $1 int: days since 2020-01-01.
select webhooks.attach_day($1)
