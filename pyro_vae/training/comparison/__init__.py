"""Several trainings side by side, paired by seed."""
