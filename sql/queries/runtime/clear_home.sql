-- Forgets all places where instances ran: the database is adopted, and the present place follows.
delete from webhooks.home
