"""Variational distributions fitted to single data, and the inference gaps."""
