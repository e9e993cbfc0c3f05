"""Defines the values that all rooms use."""
