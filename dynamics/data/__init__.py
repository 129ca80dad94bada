"""Data sets as pure functions of a key and sizes; the real ones from disk or a wheel."""
