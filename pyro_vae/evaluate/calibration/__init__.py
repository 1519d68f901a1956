"""Whether a guide is right: ranks of the truth among its draws, coverage, reliability, predictive checks."""
