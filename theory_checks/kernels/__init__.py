"""Kernels of wide networks: how they are made up, their limits, and regression with them."""
