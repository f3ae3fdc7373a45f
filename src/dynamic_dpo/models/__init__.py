"""Models: where they come from, their files, their vocabularies."""
