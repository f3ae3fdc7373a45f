"""Rows as supervised examples: how one is read, and what the chat template makes of it."""
