"""The numbers that AlpacaEval 2 publishes: the weighted win rate and its length-controlled form."""
