"""What ranking losses cost on a GPU: time and memory of the losses, and time of detectors' training steps.

    python -m studies.gpu

Writes studies/results/gpu_losses.csv and gpu_detectors.csv. It needs a GPU.
"""

from __future__ import annotations

from pathlib import Path

from concordet.benchmark import detectors, losses
from concordet.benchmark.results import caption, read_rows

RESULTS = Path(__file__).parent / "results"
LOSSES, STEPS = RESULTS / "gpu_losses.csv", RESULTS / "gpu_detectors.csv"
DETECTORS = ("retinanet", "fcos", "atss", "faster_rcnn", "deformable_detr")

UNMEASURED = """Not measured yet: no GPU was available. The Triton kernels are tested in Triton's interpreter and
compiled for sm_80, sm_90 and sm_100 (`tests/ranking/test_kernels.py`); the tests that need a GPU were skipped."""

MEASURED = """`python -m studies.gpu`: {caption}.

Forward and backward as a multiple of torchvision's `sigmoid_focal_loss` on the same logits in the same run (medians),
and peak memory of the device with the data:

{losses}

Training steps (forward, backward, update) at full size, batch of 8, as a multiple of the step with the default loss in
the same round (median and quartiles):

{steps}"""


def text() -> str:
    """Both tables, or a sentence that nothing was measured."""
    if not LOSSES.exists():
        return UNMEASURED
    rows, steps = read_rows(LOSSES), read_rows(STEPS)
    return MEASURED.format(caption=caption(rows), losses=losses.markdown(rows), steps=detectors.markdown(steps))


def main() -> None:
    """Measures, writes and prints."""
    grid = losses.Options(logits=(1_000_000, 10_000_000), shares=(0.001, 0.01, 0.05), device="cuda", out=LOSSES)
    losses.main(grid)
    detectors.main(detectors.Options(DETECTORS, side=800, batch=8, rounds=15, device="cuda", out=STEPS))
    print(text())


if __name__ == "__main__":
    main()
