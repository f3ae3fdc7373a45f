"""How strong, decided afterwards: models between a reference and its policy, scored on held-out pairs."""
