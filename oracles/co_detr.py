"""Co-DETR beside its authors' code: terms of encoder and decoder, auxiliary heads, queries of their positives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import Assigned
from concordet.detectors import build_detector
from concordet.detectors.architectures.set_prediction.auxiliary_heads import Positives
from concordet.detectors.architectures.set_prediction.co_detr import CoDETR, Queries
from concordet.detectors.architectures.set_prediction.detection_transformer import to_pixels
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import RoIOutput
from concordet.detectors.set_prediction import Outcome, Stage
from oracles import regions
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.heads import CONFIGS, STRIDES, TOLERANCE, Fixed, flat, one_per_image
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches

REPOSITORY = "Co-DETR"
MODELS_FOLDER = "projects/models"
SIZE, QUERIES, CHANNELS = (HEIGHT, WIDTH), 100, 256
META = {"img_shape": (HEIGHT, WIDTH, 3), "pad_shape": (HEIGHT, WIDTH, 3)}
WEIGHT = 12.0
"""Weight of auxiliary heads: six decoder layers, each with lambda_2 = 2."""

PADDED = "published: random negatives fill up an image's queries; concordet masks them, an option of that code"
POOLED = "as torchvision: not shifted by half a pixel, 2 x 2 samples per cell; mmdetection: shifted, one per pixel"
Pairs = dict[str, list[tuple[Tensor, Tensor]]]


def compare() -> Iterator[Comparison]:
    """Encoder, decoder, auxiliary heads, queries."""
    head = published_head()
    if head is None:
        return
    model = build_detector(
        "co_detr", num_classes=CLASSES, backbone="resnet18", image_size=SIZE, num_queries=QUERIES, loss="default"
    ).train()
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    yield from rows(_layer(model, head, pairs, "layer6"), "decoder layer: ")
    yield from rows(_layer(model, head, pairs, "encoder"), "encoder: ")
    yield from rows(_atss(model, pairs), "auxiliary ATSS: ")
    yield from rows(_roi(model, pairs), "auxiliary Faster R-CNN: ")
    yield from pooled(model, pairs)
    yield from rows(_queries(model, head, pairs), "queries of the heads' positives: ", {"published padding": PADDED})


def rows(
    found: Pairs, what: str, reasons: dict[str, str] | None = None, oracle: str = REPOSITORY
) -> Iterator[Comparison]:
    """One row per entry; the reason is the one whose key is in the entry's name."""
    for name, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        reason = next((r for key, r in (reasons or {}).items() if key in name), "")
        yield Comparison(
            f"co_detr, {what}{name}", oracle, len(values), deviation, "relative", TOLERANCE, reason
        )  # fmt: skip


class Assigner:
    """mmdetection 3's Hungarian matching with the arguments of mmdetection 2."""

    def __init__(self) -> None:
        config = Config.fromfile(CONFIGS / "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py").model
        self.assigner = TASK_UTILS.build(config.train_cfg.assigner)

    def assign(self, boxes: Tensor, scores: Tensor, truth: Tensor, labels: Tensor, meta: Any, ignored: None) -> Any:
        """Objects from boxes in units of the image."""
        height, width = meta["img_shape"][:2]
        pixels = bbox_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
        predicted = InstanceData(bboxes=pixels, scores=scores, priors=pixels)
        self.objects = InstanceData(bboxes=truth, labels=labels)
        self.predicted = predicted
        return self.assigner.assign(predicted, self.objects, img_meta={"img_shape": (height, width)})

    def sample(self, assigned: Any, boxes: Tensor, truth: Tensor) -> Any:
        """All predictions."""
        return PseudoSampler().sample(assigned, self.predicted, self.objects)


def published_head() -> Any:
    """The authors' loss methods, with the settings of their configuration on ResNet-50; None without a clone."""
    scope = {
        "bbox_cxcywh_to_xyxy": bbox_cxcywh_to_xyxy,
        "bbox_xyxy_to_cxcywh": bbox_xyxy_to_cxcywh,
        "reduce_mean": lambda tensor: tensor,
        "multi_apply": lambda function, *given: tuple(
            map(list, zip(*(function(*each) for each in zip(*given, strict=True)), strict=True))
        ),
    }
    assigner = Assigner()
    head = SimpleNamespace(
        num_classes=CLASSES,
        cls_out_channels=CLASSES,
        bg_cls_weight=0,
        sync_cls_avg_factor=True,
        lambda_1=1,
        max_pos_coords=300,
        use_zero_padding=True,
        loss_cls=FocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=L1Loss(loss_weight=5.0),
        loss_iou=GIoULoss(loss_weight=2.0),
        assigner=assigner,
        sampler=assigner,
    )
    path = f"{MODELS_FOLDER}/co_deformable_detr_head.py"
    for name in ("loss_single", "loss_single_aux", "get_targets", "_get_target_single", "get_aux_targets"):
        method = definition(REPOSITORY, path, name, scope, owner="CoDeformDETRHead")
        if method is None:
            return None
        setattr(head, name, lambda *given, method=method: method(head, *given))
    return head


def objects_of(batch: list[Scene]) -> Objects:
    """A batch's objects."""
    return Objects.of([s.boxes for s in batch], [s.labels for s in batch])


def predictions(seed: int, count: int, queries: int) -> tuple[Tensor, Tensor]:
    """Logits and boxes in units of the image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, queries, CLASSES, generator=generator)
    boxes = 0.1 + 0.8 * torch.rand(count, queries, 4, generator=generator)
    boxes[..., 2:] *= 0.3
    return logits, boxes


def append(found: Pairs, model: CoDETR, record: Assigned, theirs: Any) -> None:
    """Adds the three terms of a layer; ``theirs`` are class, L1 and GIoU."""
    mine = model.criterion.stages[record.stage](record)
    for index, term in enumerate(("classification", "l1", "box")):
        ours = model.criterion.weights.get(record.stage, 1.0) * mine[term]
        found.setdefault(f"{term} term", []).append((ours, theirs[index]))


def _layer(model: CoDETR, head: Any, pairs: list[list[Scene]], name: str) -> Pairs:
    """Terms of a decoder layer, or of the encoder, whose objects have one class."""
    found: Pairs = {}
    for seed, batch in enumerate(pairs):
        logits, boxes = predictions(seed, len(batch), QUERIES)
        stage = Stage(name, logits, to_pixels(boxes, [SIZE] * len(batch)), class_agnostic=name == "encoder")
        outcome = Outcome([stage], [SIZE] * len(batch), objects_of(batch))
        (record,) = model._records(outcome, trained=True)
        labels = [s.labels * 0 if name == "encoder" else s.labels for s in batch]
        theirs = head.loss_single(logits, boxes, [s.boxes for s in batch], labels, [META] * len(batch))
        append(found, model, record, theirs)
    return found


def levels(seed: int, count: int, channels: int, shift: float = 0.0) -> list[Tensor]:
    """Maps ``[b, channels, h, w]`` of the five levels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        shift + 0.5 * torch.randn(count, channels, -(-HEIGHT // s), -(-WIDTH // s), generator=generator)
        for s in STRIDES
    ]


def images(count: int) -> ImageList:
    """Images of the scenes' size."""
    return ImageList(torch.zeros(count, 3, *SIZE), [SIZE] * count)


def atss_targets(head: Any, batch: list[Scene]) -> tuple[Any, ...]:
    """mmdetection's targets: anchors, labels, weights of labels, boxes by level; and the positives."""
    sizes = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]
    metas = [{"img_shape": SIZE, "pad_shape": SIZE}] * len(batch)
    anchors, flags = head.get_anchors(sizes, metas, device="cpu")
    objects = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
    found = head.get_targets(anchors, flags, objects, batch_img_metas=metas)
    return (*found[:4], found[5])


def atss_head() -> Any:
    """mmdetection 3's ATSS head with the settings of Co-DETR's."""
    config = Config.fromfile(CONFIGS / "atss/atss_r50_fpn_1x_coco.py").model
    settings = config.bbox_head
    settings.update(num_classes=CLASSES, train_cfg=config.train_cfg, stacked_convs=1)
    settings.loss_cls.loss_weight = settings.loss_centerness.loss_weight = WEIGHT
    settings.loss_bbox.loss_weight = 2 * WEIGHT
    return MODELS.build(settings)


def _atss(model: CoDETR, pairs: list[list[Scene]]) -> Pairs:
    """Terms of the dense head: mmdetection's targets, the authors' losses."""
    head, found = atss_head(), {}
    single = definition(REPOSITORY, f"{MODELS_FOLDER}/co_atss_head.py", "loss_single", owner="CoATSSHead")
    for seed, batch in enumerate(pairs):
        maps = [levels(seed + 100 * i, len(batch), c, s) for i, (c, s) in enumerate([(CLASSES, -2), (4, 0), (1, 0)])]
        record = _atss_positives(model, maps, levels(seed, len(batch), CHANNELS), batch).record
        mine = model.criterion.stages["atss"](record)
        *targets, positives = atss_targets(head, batch)
        each = [single(head, targets[0][i], *(m[i] for m in maps), *(t[i] for t in targets[1:]), None, positives)
                for i in range(len(STRIDES))]  # fmt: skip
        classification, box, quality, weights = (sum(x) for x in zip(*each, strict=True))
        counts = torch.bincount(record.image_ids, minlength=len(batch)).tolist()
        factor = one_per_image(counts)
        theirs = {
            "classification": factor["classification"] * classification,
            "box": box / max(float(weights), 1.0),
            "quality": factor["quality"] * quality,
        }
        for term, other in theirs.items():
            ours = model.criterion.weights["atss"] * mine[term]
            found.setdefault(f"{term} term", []).append((ours, other))
    return found


def _atss_positives(model: CoDETR, maps: list[list[Tensor]], pyramid: list[Tensor], batch: list[Scene]) -> Positives:
    """Terms of our head with these outputs and features."""
    logits, deltas, quality = maps
    model.heads.atss.head = Fixed((flat(logits, CLASSES), flat(deltas, 4), flat(quality, 1).squeeze(-1)))
    return model.heads._atss(images(len(batch)), pyramid, objects_of(batch))


def _roi(model: CoDETR, pairs: list[list[Scene]]) -> Pairs:
    """Terms of the RoI head for the same boxes."""
    path = "mmdet/models/roi_heads/bbox_heads/bbox_head.py"
    loss = definition(REPOSITORY, path, "loss", {"accuracy": lambda *given: None}, owner="BBoxHead")
    stage = regions.Stage("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", 0)
    head = SimpleNamespace(
        num_classes=CLASSES,
        custom_activation=False,
        reg_decoded_bbox=True,
        reg_class_agnostic=False,
        bbox_coder=DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2)),
        loss_cls=CrossEntropyLoss(loss_weight=WEIGHT),
        loss_bbox=GIoULoss(loss_weight=10 * WEIGHT),
    )
    found: Pairs = {}
    for seed, batch in enumerate(pairs):
        boxes = [regions.proposals(s, seed) for s in batch]
        generator = torch.Generator().manual_seed(seed)
        count = sum(map(len, boxes))
        logits = torch.randn(count, CLASSES + 1, generator=generator)
        deltas = 0.5 * torch.randn(count, CLASSES, 4, generator=generator)
        (record,) = model.heads.rcnn.roi_records(None, [RoIOutput(boxes, logits, deltas)], objects_of(batch))
        mine = model.criterion.stages["roi"](record)
        chosen = stage.samples(boxes, batch)
        starts = [0, len(boxes[0])]
        order = torch.cat(
            [start + torch.cat([s.pos_inds, s.neg_inds]) for start, s in zip(starts, chosen, strict=True)]
        )
        labels = torch.cat([torch.cat([s.pos_gt_labels, torch.full_like(s.neg_inds, CLASSES)]) for s in chosen])
        targets = torch.cat([torch.cat([s.pos_gt_bboxes, torch.zeros(len(s.neg_inds), 4)]) for s in chosen])
        rois = torch.cat([torch.zeros(count, 1), torch.cat(boxes)[order]], 1)
        theirs = loss(
            head,
            logits[order],
            deltas[order].flatten(1),
            rois,
            labels,
            torch.ones(count),
            targets,
            torch.ones(count, 4),
        )
        for term, other in (("classification", "loss_cls"), ("box", "loss_bbox")):
            ours = model.criterion.weights["roi"] * mine[term]
            found.setdefault(f"{term} term", []).append((ours, theirs[other]))
    return found


def pooled(model: CoDETR, pairs: list[list[Scene]]) -> Iterator[Comparison]:
    """Features of boxes, averaged over their cells: with torchvision's way of sampling, and with mmdetection's."""
    layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
    extractor = SingleRoIExtractor(layer, CHANNELS, [8, 16, 32, 64], finest_scale=112)
    settings = [r.settings for r in extractor.roi_layers]
    found: Pairs = {}
    for seed, batch in enumerate(pairs):
        boxes = [regions.proposals(s, seed) for s in batch]
        coarse = torch.randn(len(batch), CHANNELS, 4, 5, generator=torch.Generator().manual_seed(seed))
        pyramid = [nn.functional.interpolate(coarse, m.shape[-2:], mode="bilinear") for m in levels(0, 1, 1)]
        named = {str(i): m for i, m in enumerate(pyramid)}
        ours = model.heads.rcnn.box_pool(named, boxes, [SIZE] * len(batch)).mean((2, 3))
        rois = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(boxes)])
        for what, sampling in (
            ("features of boxes, sampled as in torchvision", (2, False)),
            ("features of boxes", (0, True)),
        ):
            for module, (size, scale, *_) in zip(extractor.roi_layers, settings, strict=True):
                module.settings = (size, scale, *sampling)
            found.setdefault(what, []).append((ours, extractor(pyramid[:4], rois).mean((2, 3))))
    yield from rows(found, "auxiliary Faster R-CNN: ", {"boxes": POOLED}, "mmdet 3.3.0")


def published_embedding(model: CoDETR) -> Any:
    """The authors' queries of positives, with our layers; their decoder's arguments are returned."""
    path = f"{MODELS_FOLDER}/transformer.py"
    inverse = definition(REPOSITORY, path, "inverse_sigmoid")
    owner = "CoDeformableDetrTransformer"
    embed = definition(REPOSITORY, path, "get_proposal_pos_embed", {"math": math}, owner=owner)
    forward = definition(REPOSITORY, path, "forward_aux", {"inverse_sigmoid": inverse}, owner=owner)
    makers = list(model.queries.values())
    transformer = SimpleNamespace(
        embed_dims=CHANNELS,
        num_co_heads=2,
        with_coord_feat=True,
        aux_pos_trans=[m.place[0] for m in makers],
        aux_pos_trans_norm=[m.place[1] for m in makers],
        pos_feats_trans=[m.content[0] for m in makers],
        pos_feats_norm=[m.content[1] for m in makers],
        head_pos_embed=SimpleNamespace(weight=[m.origin for m in makers]),
        get_valid_ratio=lambda mask: torch.ones(len(mask), 2),
        get_proposal_pos_embed=lambda boxes: embed(transformer, boxes),
    )

    def queries(boxes: Tensor, features: Tensor, head_idx: int) -> tuple[Tensor, Tensor]:
        given: dict[str, Tensor] = {}

        def decoder(**arguments: Tensor) -> tuple[None, None]:
            given.update(arguments)
            return None, None

        transformer.decoder = decoder
        maps = [torch.zeros(len(boxes), CHANNELS, 1, 1)]
        forward(transformer, maps, [m[:, 0] for m in maps], None, maps, boxes, pos_feats=features, head_idx=head_idx)
        return given["query_pos"].transpose(0, 1), given["query"].transpose(0, 1)

    return queries


def _queries(model: CoDETR, head: Any, pairs: list[list[Scene]]) -> Pairs:
    """Which positives become queries, with which features, objects and embeddings; terms of a layer's predictions."""
    atss, embedding = atss_head(), published_embedding(model)
    found: Pairs = {}
    for seed, batch in enumerate(pairs):
        maps = [levels(seed + 100 * i, len(batch), c) for i, c in enumerate((CLASSES, 4, 1))]
        pyramid = levels(seed, len(batch), CHANNELS)
        ours = Queries(_atss_positives(model, maps, pyramid, batch), [SIZE] * len(batch))
        anchors, labels, _, targets, _ = atss_targets(atss, batch)
        coordinates = tuple(
            [torch.cat([level[i] for level in x]) for i in range(len(batch))] for x in (anchors, labels, targets)
        )
        for padded in (False, True):
            head.use_zero_padding = not padded
            torch.manual_seed(seed)
            published = head.get_aux_targets((*coordinates, "atss"), [META] * len(batch), pyramid, 1)
            logits, boxes = predictions(seed, len(batch), published[0].shape[1])
            theirs = head.loss_single_aux(
                logits, boxes, published[1], published[3], published[2], published[4], [META] * len(batch)
            )
            rows = (ours.record.image_ids[ours.kept], ours.slots)
            record = ours.stage("atss_layer1", logits[rows], to_pixels(boxes, [SIZE] * len(batch))[rows])
            if padded:
                mine = model.criterion.stages["atss_layer1"](record)
                found.setdefault("classification term, with published padding", []).append(
                    (mine["classification"], theirs[0])
                )
                continue
            append(found, model, record, theirs)
            for name, mine, other in (("boxes", ours.boxes, published[0]), ("features", ours.features, published[5])):
                found.setdefault(name, []).append((mine, other[rows]))
            slots = published[3].sum(1).long()
            found.setdefault("number per image", []).append(
                (rows[0].bincount(minlength=len(batch)).float(), slots.float())
            )
            position, content = embedding(published[0], published[5], 1)
            mine = model.queries["atss"](model._embedded(ours.boxes), ours.features)
            found.setdefault("position embedding", []).append((mine[0], position[rows]))
            found.setdefault("content", []).append((mine[1], content[rows]))
    return found
