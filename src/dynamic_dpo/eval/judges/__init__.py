"""Judges: what each one asks, and what it takes for an answer."""
