"""Detections of all processes, measured together."""

import torch

from concordet.engine.training.module import evaluate_on_all, without_repeats

from ..trained import tiny


def test_repeated_images_count_once():
    """Shares are filled up with repeated images, so that every process makes as many steps."""
    first = [{"image_id": 1, "score": 0.5}, {"image_id": 1, "score": 0.4}, {"image_id": 3, "score": 0.3}]
    second = [{"image_id": 2, "score": 0.2}, {"image_id": 1, "score": 0.5}, {"image_id": 1, "score": 0.4}]
    assert without_repeats([first, second]) == [*first, second[0]]


def test_an_undefined_metric_is_nan():
    from concordet.engine.data import build_dataset

    truth = build_dataset(tiny().data, "val").ground_truth() | {"annotations": []}
    assert torch.tensor(evaluate_on_all(truth, [])[0]["AP"]).isnan()
