"""What is maximized in place of the ELBO."""
