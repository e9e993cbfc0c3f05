"""Is an endpoint failing, and what follows from it."""
