"""Decides: values in, values out. No clock, no randomness, no I/O and no logger may enter here."""
