"""Training of generators and masked autoencoders. Import from the modules: a cached latent needs few of them."""
