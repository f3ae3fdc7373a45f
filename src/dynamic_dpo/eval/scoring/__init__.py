"""What a policy and its reference say of given texts: log-probabilities, margins, KL."""
