"""How well single latent dimensions represent single known factors."""
