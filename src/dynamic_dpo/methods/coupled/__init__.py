"""Losses whose pairs hang together in their controller batch, with a constant beta: one file each."""
