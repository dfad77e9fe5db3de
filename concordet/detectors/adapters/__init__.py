"""Losses in detectors of torchvision and Transformers."""
