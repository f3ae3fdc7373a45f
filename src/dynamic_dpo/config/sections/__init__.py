"""The sections of a configuration file, one file a topic."""
