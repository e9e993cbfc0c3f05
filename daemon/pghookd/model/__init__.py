"""The values that all rooms use."""
