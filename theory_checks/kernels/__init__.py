"""Regression with kernels: risks, spectra and learning curves in closed form next to simulation."""
