"""Work side by side: commands as processes of their own, calls in threads."""
