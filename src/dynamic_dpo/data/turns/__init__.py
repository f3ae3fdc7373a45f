"""Whose turn it is in an answer: what the policy writes, and what others say inside and behind it."""
