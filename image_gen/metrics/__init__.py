"""How good generated images are: statistics of features, and the networks that give them."""
