"""A pair's loss and gradient as one compiled graph, and the precision of its networks."""
