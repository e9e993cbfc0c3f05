"""The demo: a Postgres, the daemon, three sites and a receiver on one machine, to watch events travel."""
