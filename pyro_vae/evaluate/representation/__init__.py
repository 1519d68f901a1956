"""Uses of a latent space: codes, clusters, traversals."""
