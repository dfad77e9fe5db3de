"""Detectors that classify and refine proposals."""
