"""Commands on evaluations that are there: their files for other tools, and tables of several."""
