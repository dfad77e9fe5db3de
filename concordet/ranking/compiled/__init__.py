"""The soft counts of :mod:`concordet.ranking.exact` as loops that Numba compiles, for logits on a CPU."""
