"""Neural collapse: where training puts the class means of the last layer, and why."""
