"""Rollouts: from prompts to preference pairs that training takes: sample, label, pair, filter, write."""
