"""Touches the world, one resource a file. Foreign names and foreign exceptions stop here."""
