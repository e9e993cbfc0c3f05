"""Takes rows of `backlog` back into memory."""
