"""Closed-form predictions; nothing here imports a measurement, a model or a training loop."""
