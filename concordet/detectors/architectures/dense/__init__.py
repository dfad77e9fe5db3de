"""Detectors that predict at every location."""
