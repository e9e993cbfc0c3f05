"""One request, as bytes."""
