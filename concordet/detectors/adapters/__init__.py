"""Losses in torchvision's and Transformers' own detectors."""
