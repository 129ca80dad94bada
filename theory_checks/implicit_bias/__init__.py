"""What gradient descent prefers among all solutions, and how long it takes to get there."""
