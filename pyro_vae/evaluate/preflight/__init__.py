"""Is a pair sound? Checks before training, with the site and the fix."""
