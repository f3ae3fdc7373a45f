"""What looks at a run while it goes on, and changes nothing of it."""
