"""How pairs meet the model: every needed token once, each reference log-probability once."""
