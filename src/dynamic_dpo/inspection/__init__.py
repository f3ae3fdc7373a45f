"""Looking at preference data before hours of training: what is in it, what is wrong with it, what a model sees."""
