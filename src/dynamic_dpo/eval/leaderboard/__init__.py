"""Several evaluations as one table: read from their folders, written for people, papers and spreadsheets."""
