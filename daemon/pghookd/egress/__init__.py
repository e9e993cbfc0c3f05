"""Where a request may go, and the wire."""
