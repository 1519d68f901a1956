"""How the ELBO and bounds like it, and their gradients, are estimated."""
