"""Tools on one machine: the demo, receivers, an embedded Postgres."""
