"""Judging conversations of several turns: a grade for one model's answer to a turn, or two models side by side."""
