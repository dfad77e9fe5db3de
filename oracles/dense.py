"""Dense heads whose anchors, points or matching differ: RetinaNet, SSD, YOLACT, FCOS; mmdetection's and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.detectors import build_detector
from concordet.detectors.dense import DenseDetector
from oracles.comparison import Comparison, largest
from oracles.heads import CONFIGS, STRIDES, TOLERANCE, Fixed, flat
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches, ellipses

UNWEIGHTED = "as torchvision: mean GIoU loss; mmdetection weighs it by centerness"
SHARED = ", with concordet's anchors and matching"
ON_GRID = "as torchvision: `<` at the bounds between levels, on which these objects lie; mmdetection: `<=`"


@dataclass(frozen=True)
class Case:
    """A detector at one image size.

    Attributes:
        detector: concordet's name.
        config: mmdetection's configuration.
        size: height and width of the images.
        levels: cells of each level, as (rows, columns).
        per_location: anchors per location of each level.
        reason: why terms differ with mmdetection's own anchors and assigner.
        columns: logits per anchor.
    """

    detector: str
    config: str
    size: tuple[int, int]
    levels: list[tuple[int, int]]
    per_location: list[int]
    reason: str = ""
    columns: int = CLASSES + 1


RETINANET = Case(
    "retinanet", "retinanet/retinanet_r50_fpn_1x_coco.py", (HEIGHT, WIDTH),
    [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES], [9] * 5, "as torchvision's matching, see Assignment", CLASSES,
)  # fmt: skip
SSD = Case(
    "ssd", "ssd/ssd300_coco.py", (300, 300), [(n, n) for n in (38, 19, 10, 5, 3, 1)], [4, 6, 6, 6, 4, 4],
    "as torchvision: default boxes of the last level are clipped to the image",
)  # fmt: skip
YOLACT = Case(
    "yolact", "yolact/yolact_r50_1xb8-55e_coco.py", (550, 550), [(n, n) for n in (69, 35, 18, 9, 5)], [3] * 5,
    "an anchor for every object, see Assignment; sides of anchors are rounded, as in torchvision",
)  # fmt: skip
FCOS = Case(
    "fcos", "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py", (256, 384),
    [(256 // s, 384 // s) for s in STRIDES], [1] * 5,
)  # fmt: skip


def scaled(scene: Scene, size: tuple[int, int]) -> Scene:
    """The scene at another image size."""
    factor = scene.boxes.new_tensor([size[1] / WIDTH, size[0] / HEIGHT]).repeat(2)
    return Scene(scene.kind, scene.boxes * factor, scene.labels)


def maps(case: Case, seed: int, channels: int, count: int = 2, shift: float = 0.0) -> list[Tensor]:
    """Raw maps of each level, ``[b, k channels, h, w]``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        shift + 0.5 * torch.randn(count, k * channels, *level, generator=generator)
        for k, level in zip(case.per_location, case.levels, strict=True)
    ]


def detector(case: Case, loss: str = "default") -> DenseDetector:
    """concordet's."""
    settings: dict[str, Any] = {} if case.detector == "ssd" else {"backbone": "resnet18"}
    return build_detector(case.detector, num_classes=CLASSES, image_size=case.size, loss=loss, **settings).train()


def oracle(case: Case, **changes: Any) -> Any:
    """mmdetection's head, with its configuration and ``changes``."""
    config = Config.fromfile(CONFIGS / case.config).model
    settings = config.bbox_head
    settings.update(
        {"num_classes": CLASSES, "train_cfg": config.get("train_cfg"), "test_cfg": config.test_cfg} | changes
    )
    return MODELS.build(settings)


def use_ours(head: Any, case: Case, anchors: Tensor, matching: Callable[..., Tensor]) -> None:
    """Gives mmdetection's head our anchors and matching."""
    sizes = [k * rows * columns for k, (rows, columns) in zip(case.per_location, case.levels, strict=True)]

    class Anchors:
        num_levels = len(sizes)
        num_base_priors = case.per_location

        def grid_priors(self, *given: Any, **settings: Any) -> list[Tensor]:
            return list(anchors.split(sizes))

        def valid_flags(self, *given: Any, **settings: Any) -> list[Tensor]:
            return [torch.ones(size, dtype=torch.bool) for size in sizes]

    class Assigner:
        def assign(self, priors: Any, objects: Any, ignored: Any = None) -> AssignResult:
            found = matching(priors.priors, objects.bboxes, sizes)
            codes = torch.where(found >= 0, found + 1, torch.where(found == -1, 0, -1))
            labels = torch.where(found >= 0, objects.labels[found.clamp(min=0)], -1)
            return AssignResult(len(objects.bboxes), codes, torch.zeros(len(codes)), labels)

    head.prior_generator, head.assigner = Anchors(), Assigner()


def compare() -> Iterator[Comparison]:
    """Terms of the three detectors over batches of two scenes that have an object."""
    pairs = [b for b in batches(1) if min(len(s.boxes) for s in b)]
    yield from _multibox(RETINANET, pairs)
    yield from _multibox(SSD, pairs)
    yield from _multibox(YOLACT, pairs)
    others, grid = (
        [b for b in batches(2) if any(s.kind == "grid" for s in b) == on_grid and min(len(s.boxes) for s in b)]
        for on_grid in (False, True)
    )
    yield from _fcos(others, "", {"box": UNWEIGHTED})
    yield from _fcos(others, " with equal weights", {}, weighted=False)
    reasons = {"classification": ON_GRID, "box": f"{UNWEIGHTED}; {ON_GRID}", "quality": ON_GRID}
    yield from _fcos(grid, " of objects on a grid", reasons)
    yield from _masks(pairs)


def published(head: Any, case: Case, raw: list[list[Tensor]], batch: list[Scene]) -> dict[str, Tensor]:
    """mmdetection's terms."""
    meta = {"img_shape": case.size, "pad_shape": case.size, "batch_input_shape": case.size}
    objects = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
    losses = head.loss_by_feat(*raw, objects, [meta] * len(batch))
    return {k: sum(x.sum() for x in v) if isinstance(v, list | tuple) else v for k, v in losses.items()}


def records_of(model: DenseDetector, case: Case, batch: list[Scene]) -> Any:
    """The record that the loss sees."""
    targets: list[dict[str, Tensor]] = [{"boxes": s.boxes, "labels": s.labels + 1} for s in batch]
    images = [torch.rand(3, *case.size) for _ in batch]
    return DenseDetector._records(model, DenseDetector._predict(model, images, targets), trained=True)[-1]


def _multibox(case: Case, pairs: list[list[Scene]]) -> Iterator[Comparison]:
    model = detector(case)
    model.predict = lambda batch, features: DenseDetector.predict(model, batch, features)  # without YOLACT's masks
    same, own = oracle(case), oracle(case)
    found: dict[tuple[bool, str], list[tuple[Tensor, Tensor]]] = {}
    for seed, scenes in enumerate(pairs):
        batch = [scaled(s, case.size) for s in scenes]
        logits, deltas = maps(case, seed, case.columns), maps(case, 100 + seed, 4)
        model.backbone = Fixed({str(i): m for i, m in enumerate(logits)})
        model.head = Fixed((flat(logits, case.columns), flat(deltas, 4), None))
        mine = model.criterion(records_of(model, case, batch))
        outcome = DenseDetector._predict(model, [torch.rand(3, *case.size)] * 2, None)
        use_ours(same, case, outcome.stages[-1].anchors[0], model.assigner)
        extra = [[m[:, :1] for m in logits]] if case.detector == "yolact" else []  # coefficients, for masks only
        for shared, head in ((True, same), (False, own)):
            theirs = published(head, case, [logits, deltas, *extra], batch)
            for term, other in (("classification", "loss_cls"), ("box", "loss_bbox")):
                found.setdefault((shared, term), []).append((mine[term], theirs[other]))
    for (shared, term), values in found.items():
        what = f"{case.detector}: {term} term{SHARED if shared else ''}"
        deviation = max(largest([pair]) for pair in values)
        reason = "" if shared else case.reason
        yield Comparison(what, "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE, reason)


def _fcos(
    pairs: list[list[Scene]], what: str, reasons: dict[str, str], *, weighted: bool = True
) -> Iterator[Comparison]:
    """Objects keep their pixels, so that those on the grid stay there; points are at the cells' corners in both."""
    model, head = detector(FCOS), oracle(FCOS)
    head.prior_generator = MlvlPointGenerator(STRIDES, offset=0)
    terms = {"classification": "loss_cls", "box": "loss_bbox", "quality": "loss_centerness"}
    if not weighted:
        loss = head.loss_bbox.forward
        head.loss_bbox.forward = lambda boxes, targets, **weights: loss(boxes, targets)
        terms = {"box": "loss_bbox"}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in terms}
    for seed, batch in enumerate(pairs):
        logits, quality = maps(FCOS, seed, CLASSES, shift=-2.0), maps(FCOS, 200 + seed, 1)
        distances = [m.abs() for m in maps(FCOS, 100 + seed, 4, shift=1.0)]  # in strides
        model.backbone = Fixed({str(i): m for i, m in enumerate(logits)})
        model.head = Fixed((flat(logits, CLASSES), flat(distances, 4), flat(quality, 1).squeeze(-1)))
        mine = model.criterion(records_of(model, FCOS, batch))
        theirs = published(head, FCOS, [logits, distances, quality], batch)
        for name, other in terms.items():
            found[name].append((mine[name], theirs[other]))
    for name, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        yield Comparison(
            f"fcos, points at corners: {name} term{what}", "mmdet 3.3.0", len(values), deviation, "relative",
            TOLERANCE, reasons.get(name, ""),
        )  # fmt: skip


def _masks(pairs: list[list[Scene]]) -> Iterator[Comparison]:
    """YOLACT's masks and classes of pixels, of our positives."""
    model, side, count = detector(YOLACT), 2 * YOLACT.levels[0][0], 32
    settings = Config.fromfile(CONFIGS / YOLACT.config).model.mask_head
    settings.update(num_classes=CLASSES, max_masks_to_train=10**6)
    head = MODELS.build(settings)
    zeros = [torch.zeros(2, 3 * (CLASSES + 1), *level) for level in YOLACT.levels]
    model.backbone = Fixed({str(i): m for i, m in enumerate(zeros)})
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"mask": [], "segmentation": []}
    for seed, scenes in enumerate(pairs):
        batch = [scaled(s, YOLACT.size) for s in scenes]
        generator = torch.Generator().manual_seed(seed)
        coefficients = flat(maps(YOLACT, seed, count), count).tanh()
        prototypes = torch.rand(2, count, side, side, generator=generator)
        pixels = torch.randn(2, CLASSES, side // 2, side // 2, generator=generator)
        logits, deltas = (flat(maps(YOLACT, seed, c), c) for c in (CLASSES + 1, 4))
        model.head, model.protonet, model.segmentation = (
            Fixed(x) for x in ((logits, deltas, coefficients), prototypes, pixels)
        )
        masks = [ellipses(s.boxes, YOLACT.size) for s in batch]
        targets = [{"boxes": s.boxes, "labels": s.labels + 1, "masks": m} for s, m in zip(batch, masks, strict=True)]
        record = model.assigned([torch.rand(3, *YOLACT.size) for _ in batch], targets)[-1]
        mine = model.criterion(record)
        positives, predicted, truth = [], [], []
        for i, scene in enumerate(batch):
            of_image = record.image_ids == i
            first = sum(len(s.boxes) for s in batch[:i])
            objects = record.gt_ids[of_image] - first
            positives.append(InstanceData(pos_assigned_gt_inds=objects, bboxes=record.gt_boxes[of_image]))
            chosen = coefficients.flatten(0, 1)[record.positive[of_image]]
            predicted.append((prototypes[i].permute(1, 2, 0) @ chosen.T).sigmoid())
            bitmaps = BitmapMasks(masks[i].numpy(), *YOLACT.size)
            # its index of a class is the label less 1, although its labels begin with 0
            truth.append(InstanceData(bboxes=scene.boxes, labels=scene.labels + 1, masks=bitmaps))
        meta = [{"img_shape": YOLACT.size}] * len(batch)
        theirs = head.loss_by_feat(predicted, pixels, truth, meta, positives)
        found["mask"].append((mine["mask"], sum(theirs["loss_mask"])))
        found["segmentation"].append((mine["segmentation"], sum(theirs["loss_segm"])))
    for name, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        what = f"yolact: {name} term{' of the same positives' if name == 'mask' else ''}"
        yield Comparison(what, "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE)
