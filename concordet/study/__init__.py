"""Studies: a grid of detectors, losses and seeds, trained in parallel and compared with intervals."""

from concordet.errors import requires

with requires("concordet.study", "train"):
    from concordet.study.grid import Cell, Study, load_study
    from concordet.study.ray_launcher import run_study_on_ray
    from concordet.study.runner import run_cell, run_study
    from concordet.study.statistics import compare_study

__all__ = ["Cell", "Study", "compare_study", "load_study", "run_cell", "run_study", "run_study_on_ray"]
