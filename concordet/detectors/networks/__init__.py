"""Networks: backbones, heads, transformers and their weights."""
