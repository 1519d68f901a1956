"""Quality of samples: distances of features, precision and recall, diversity, sharpness."""
