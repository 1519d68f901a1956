"""Tests of ELBO estimators: against each other on any pair, against exact values on an oracle."""
