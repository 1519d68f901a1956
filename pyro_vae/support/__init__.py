"""What knows nothing of pairs: random generators, files, tables, progress, memory."""
