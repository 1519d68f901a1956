"""Variational distributions of single data, and where the nats go."""
