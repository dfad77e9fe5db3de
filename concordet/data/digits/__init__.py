"""Digit scenes: drawn on demand, no download."""
