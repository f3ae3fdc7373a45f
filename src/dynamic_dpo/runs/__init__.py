"""What a run leaves on disk: who writes it, who reads it, and the page that is made of it."""
