"""What ranking losses cost on a GPU: time and memory of the losses alone, and of detectors' training steps.

    python studies/gpu.py

Writes studies/results/gpu_losses.csv, gpu_detectors.csv and gpu.md with the card's name; without a GPU gpu.md says
that nothing was measured, and no figures are kept.
"""

from __future__ import annotations

from pathlib import Path

import torch

from concordet.benchmark import detectors, losses
from concordet.benchmark.results import read_rows
from concordet.files import replacing
from concordet.version import __version__

RESULTS = Path(__file__).parent / "results"
DETECTORS = ("retinanet", "fcos", "atss", "faster_rcnn", "deformable_detr")

UNMEASURED = """# On a GPU

Not measured: no GPU was at hand when `python studies/gpu.py` was last run (concordet {version}, torch {torch}).

The kernels of `concordet/ranking/kernels.py` are tested through Triton's interpreter and compiled for sm_90
(`tests/ranking/test_kernels.py`); the same file has tests for a card, which were skipped.
"""

MEASURED = """# On a GPU

`python studies/gpu.py`: {card}, concordet {version}, torch {torch}, CUDA {cuda}.

## Losses

Forward and backward, times torchvision's `sigmoid_focal_loss` on the same logits in the same run (medians); peak memory
of the device in MB, with the data.

{losses}

## Training steps

Forward, backward and update at full size, batch of 8, times the usual loss's step of the same round (median and
quartiles).

{detectors}
"""


def main() -> None:
    """Measures what there is to measure, and writes it."""
    versions = {"version": __version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        grid = losses.Options(
            logits=(1_000_000, 10_000_000), shares=(0.001, 0.01, 0.05), device="cuda", out=RESULTS / "gpu_losses.csv"
        )
        losses.main(grid)
        steps = detectors.Options(
            DETECTORS, side=800, batch=8, rounds=15, device="cuda", out=RESULTS / "gpu_detectors.csv"
        )
        detectors.main(steps)
        text = MEASURED.format(
            **versions,
            card=torch.cuda.get_device_name(),
            losses=losses.markdown(read_rows(grid.out)),
            detectors=detectors.markdown(read_rows(steps.out)),
        )
    else:
        text = UNMEASURED.format(**versions)
    with replacing(RESULTS / "gpu.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
