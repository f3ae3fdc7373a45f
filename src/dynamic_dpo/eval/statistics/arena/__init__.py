"""Arena-Hard's score: Bradley-Terry strengths against one baseline, strong verdicts weighted, style taken out."""
