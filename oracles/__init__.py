"""Published implementations beside concordet's, on the same inputs; `make oracles` writes docs/fidelity.md."""
