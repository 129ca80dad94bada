"""Softmax attention: which keys a query can pick out, and where training turns the weights."""
