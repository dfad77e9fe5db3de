"""Detectors that predict a set: one prediction per object."""
