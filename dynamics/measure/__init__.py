"""Measurements of kernels, curvature and statistics, as pure functions of arrays."""
