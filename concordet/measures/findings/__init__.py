"""Findings of an analysis: confusion of classes, curves over the threshold, sizes of objects, and the worst images."""
