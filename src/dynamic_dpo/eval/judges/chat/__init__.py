"""Talking to a chat model's server: one connection, what it can do, when to ask again."""
