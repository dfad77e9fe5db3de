"""One file per detector, and the registry that builds them by name."""
