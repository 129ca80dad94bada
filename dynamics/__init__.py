"""Measurements, models, data, training loops and closed forms for how neural networks learn."""
