"""Published evaluations by name: the settings that make them, as defaults which a user's own settings replace."""
