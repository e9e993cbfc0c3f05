"""From a lane to a request, and from its outcome to rows."""
