"""Runnable examples; each one tells one story."""
