"""Tools for one machine: the demo, receivers, an embedded Postgres."""
