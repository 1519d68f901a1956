"""The one training loop, its parts, and what a run records."""
