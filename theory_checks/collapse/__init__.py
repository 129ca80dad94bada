"""How features gather around their class means, where the path there is known."""
