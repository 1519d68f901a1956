"""What a latent space is good for: codes, clusters, traversals."""
