"""When and why generalisation comes long after the training set is fitted."""
