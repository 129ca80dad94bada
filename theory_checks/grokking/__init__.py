"""The energies behind grokking on a group's table: which features they favour, and when."""
