"""Helpers that know nothing of pairs: random generators, files, tables, progress, memory."""
