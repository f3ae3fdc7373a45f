"""Losses of single pairs with a constant beta and no state: one file each, a line each in the table of methods."""
