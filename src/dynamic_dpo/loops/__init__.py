"""The loop around rollouts: rounds of rollout, training and evaluation, each on what the one before has left."""
