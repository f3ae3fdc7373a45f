"""Several sets as one, drawn by weight."""
