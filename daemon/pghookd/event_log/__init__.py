"""From the table of events to the lanes."""
