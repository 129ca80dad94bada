"""How signals and gradients survive the depth of a random network, infinitely wide or not."""
