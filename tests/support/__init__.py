"""Tests of what knows nothing of pairs."""
