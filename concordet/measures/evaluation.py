"""One call from ground truth and detections to every figure but the re-ranking bounds."""

from __future__ import annotations

from typing import Any

from concordet.measures import coco
from concordet.measures.dataset import read_dataset
from concordet.measures.summary import summarize


def evaluate_detections(
    ground_truth: Any, detections: Any, iou_type: str = "bbox", *, max_dets: int = 100
) -> dict[str, Any]:
    """AP family, correlations, AIC and oLRP of detections in COCO form.

    AP and AR are hotcoco's, the numbers of pycocotools; all else reads pycocotools' matches at IoU 0.5. ``beta_cls``
    is averaged over classes; ``pearson spearman kendall concordance`` are over all true positives pooled; ``AP90`` is
    AP at IoU 0.90. :func:`concordet.measures.analyze` adds the re-ranking bounds.

    Args:
        ground_truth: path, dict, list of annotations, or array ``[n, 6]`` (see ``analyze``).
        detections: path, list of results, or array ``[n, 7]``.
        iou_type: ``"bbox"`` or ``"segm"``.
        max_dets: detections kept per image and class, highest scores first; 100 is COCO's.

    Returns:
        Plain JSON: fractions; an undefined value is None, its reason under ``reasons``; ``per_class`` is a list.

    Raises:
        ValueError: one sentence naming the file, the record and what is wrong with it.

    Example:
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}]}
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.9}]
        >>> figures = evaluate_detections(truth, found)
        >>> round(figures["AP"], 3), round(figures["AP50"], 3), round(figures["oLRP"], 3), figures["beta_cls"]
        (0.7, 1.0, 0.4, None)
    """
    if isinstance(max_dets, bool) or not isinstance(max_dets, int) or max_dets < 1:
        raise ValueError(f"max_dets is {max_dets!r}; expected a whole number from 1, 100 as in COCO.")
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type)
    truth = coco.load(dataset)
    precision = coco.average_precision(dataset, truth, max_dets=max_dets)
    return summarize(dataset, precision, coco.match(dataset, truth, max_dets=max_dets))
