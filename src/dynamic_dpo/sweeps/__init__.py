"""Several trainings that differ in a few settings, and what came of each."""
