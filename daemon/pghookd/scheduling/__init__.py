"""What may start, and when."""
