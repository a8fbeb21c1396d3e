"""Tests, a folder per floor."""
