"""Small models that show the server at work, and the programs that made them."""
