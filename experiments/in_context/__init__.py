"""In-context learning: what networks trained on many tasks do with the examples of a new one."""
