"""From a lane to a request, and its outcome into rows."""
