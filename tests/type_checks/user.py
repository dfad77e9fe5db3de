"""What users write, which type checkers in strict mode must accept; ``test_type_checks.py`` runs them on it."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn  # type: ignore[import-untyped]  # no py.typed

import concordet
from concordet.calibration import fit_calibrator
from concordet.detectors import build_detector, install, uninstall
from concordet.engine import DataConfig, OptimConfig, TrainConfig, evaluate_run, load_detector, train
from concordet.losses import CorrelationLoss, RankSortLoss, build_criterion, list_losses
from concordet.losses.functional import (
    alrp_loss,
    ap_loss,
    association_loss,
    correlation_loss,
    harmonic_loss,
    rank_sort_loss,
)
from concordet.measures import analyze, average_inconsistency, class_correlation, compare
from concordet.report import write_analysis


def losses(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    """Losses as functions."""
    ranking, sorting = rank_sort_loss(logits, labels, ious, method="exact")
    classification, localization = alrp_loss(logits, labels, 1 - ious[labels == 1])
    total: Tensor = ranking + sorting + classification + localization + ap_loss(logits, labels)
    scores = logits[labels == 1].sigmoid()
    total = total + 0.3 * correlation_loss(scores, ious[labels == 1], coefficient="concordance")
    total = total + association_loss(scores, ious[labels == 1], form="cross_entropy", reduction="sum")
    return total + harmonic_loss(scores, scores, reduction="mean")


class Head(nn.Module):
    """Losses as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = RankSortLoss()
        self.coupling = CorrelationLoss(coefficient="pearson")

    def forward(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        ranking, sorting = self.ranking(logits, labels, ious)
        coupled = self.coupling(logits[labels == 1].sigmoid(), ious[labels == 1])
        total: Tensor = ranking + sorting + coupled
        return total


def detector(images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """A training loop of one's own."""
    model = build_detector("atss", num_classes=3, size="nano", loss="rank_sort+concordance(0.3)")
    terms = model(images, targets)
    terms, detections = model.losses_and_detections(images, targets)
    boxes: Tensor = detections[0]["boxes"]
    print(boxes.shape, sorted(terms))
    total: Tensor = torch.stack(list(terms.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return total


def installed() -> nn.Module:
    """A loss in another library's detector."""
    network: nn.Module = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    model = install(network, "rank_sort")
    model.train()
    return uninstall(model)


def run(folder: Path) -> None:
    """Training, evaluation and prediction."""
    config = TrainConfig(
        detector="fcos", size="nano", loss="focal+concordance(0.3)", data=DataConfig(name="digits"), optim=OptimConfig()
    )
    out = train(config, folder / "run")
    evaluation = evaluate_run(out)
    print(evaluation["metrics"]["AP"])
    model, meta = load_detector(out / "checkpoints" / "last.ckpt")
    print(model.training, meta)
    predictor = concordet.load(out)
    for detection in predictor(["street.jpg"]):
        print(detection["boxes"])
    print(list_losses(), build_criterion("ap"))


def measures(truth: Path, first: Path, second: Path) -> None:
    """Analysis and calibration of files."""
    analysis = analyze(truth, first)
    values = analysis.to_dict()
    print(values["AP"], analysis)
    write_analysis(analysis, Path("report.html"))
    print(compare(truth, first, second)["AP"])
    calibrator = fit_calibrator(truth, first, method="isotonic")
    calibrator.save("calibrator.json")
    print(class_correlation([0.1, 0.2, 0.3], [0.5, 0.6, 0.8], [1, 1, 1]).value)
    print(average_inconsistency([0.1, 0.9], [0.2, 0.8]))
