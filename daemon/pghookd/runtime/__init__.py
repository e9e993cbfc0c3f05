"""One process, epoch by epoch."""
