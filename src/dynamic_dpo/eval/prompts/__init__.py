"""Prompts: where they come from, what a row of them is, how they are drawn and rendered."""
