"""Evaluations on prompts of several turns, as MT-Bench is: conversations, their grades, tables and a page."""
