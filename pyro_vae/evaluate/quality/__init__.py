"""How good samples are: distances of features, precision and recall, diversity, sharpness."""
