"""What owners read."""
