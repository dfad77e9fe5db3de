"""Benchmarks of losses, training steps and analyses, compared with the usual alternatives in the same run."""
