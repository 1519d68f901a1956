"""Several runs at once: from many seeds, stacked in one graph, one after another, or in several processes."""
