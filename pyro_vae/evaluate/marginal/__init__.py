"""log p(x) of any pair, per datum: importance, prior, annealed and bidirectional sampling."""
