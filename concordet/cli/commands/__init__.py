"""One module per command, with a function ``run(words)``."""
