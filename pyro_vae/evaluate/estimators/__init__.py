"""ELBO estimators put to the test: on any pair against each other, on an oracle against the exact answer."""
