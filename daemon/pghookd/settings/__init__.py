"""Defines every setting, and loads them."""
