"""How well single latent dimensions stand for single known factors."""
