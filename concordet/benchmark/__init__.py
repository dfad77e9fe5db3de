"""Timings of the parts, with what a user would pick instead beside them in the same run."""
