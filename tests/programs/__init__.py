"""Pyro programs of every kind, put to every question and every estimator."""
