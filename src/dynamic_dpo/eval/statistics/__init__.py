"""Win rates, intervals and tests; every one a function of records."""
