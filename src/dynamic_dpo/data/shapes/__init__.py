"""Shapes in which preference data is published, each rewritten as a row that `dynamic_dpo.data.pairing` reads."""
