"""Every family of causal language models in transformers, tiny and random, through the project's own training."""
