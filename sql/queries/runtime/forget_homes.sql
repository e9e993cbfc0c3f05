-- Forgets marks that are settled, and the places that were seen longest ago: a pod may have a new name at each start.
-- $1 int: how many places stay. The table holds a few dozen rows.
delete from webhooks.home
where run is null and (rival is not null
  or (host, server) not in (select host, server from webhooks.home order by seen_at desc limit $1))
