"""Nano detectors whose scores differ, as those of trained ones do, and how exported files are compared with them."""

import json

import torch

from concordet.detectors import build_detector
from concordet.export import load_exported
from studies.export import separate_scores
from tests.detections import assert_same_detections

SHAPES = ((64, 96), (100, 77), (150, 200), (80, 80))


def spread(name, loss="default", **options):
    """A nano detector in evaluation mode; its scores differ."""
    torch.manual_seed(0)
    options = {"image_size": (64, 96), "score_threshold": 0.02} | options
    model = build_detector(name, num_classes=3, size="nano", loss=loss, **options).eval()
    separate_scores(model, name, images(len(SHAPES)))
    return model


def images(count=1, seed=0):
    """Images of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *SHAPES[i % len(SHAPES)], generator=generator) for i in range(count)]


def assert_parity(path, model, pictures, *, atol=1e-5):
    """The file's detections are the model's: scores within ``atol``, boxes within 100 ``atol`` pixels.

    Each image goes through the file by itself, and the first one in a batch with its mirror image too.
    """
    exported = load_exported(path)
    pair = [pictures[0], pictures[0].flip(-1)]
    boxes, labels, scores = (torch.as_tensor(output) for output in exported.run(torch.stack(pair)))
    together = [
        {"boxes": b[n > 0], "labels": n[n > 0], "scores": s[n > 0]}
        for b, n, s in zip(boxes, labels, scores, strict=True)
    ]
    separate = [exported([image])[0] for image in pictures]
    for image, got in zip([*pair, *pictures], [*together, *separate], strict=True):
        with torch.no_grad():
            (expected,) = model([image])
        expected = {key: expected[key] for key in got}  # masks are not exported
        assert len(expected["scores"]), "the model must detect something"
        assert_same_detections(got, expected, atol=atol, scale=100.0)
    return json.loads(json.dumps(exported.meta))
