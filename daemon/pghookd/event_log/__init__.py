"""From the events table to the lanes."""
