"""Other libraries' detectors at a size for tests: three classes, random weights, no download."""

import torch
import transformers as hf
from torch import nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

ALL_SET_PREDICTORS = [
    "Detr", "ConditionalDetr", "DabDetr", "DeformableDetr", "RTDetr", "RTDetrV2", "DFine", "LwDetr", "RfDetr", "Deimv2",
]  # fmt: skip
SET_PREDICTORS = [name for name in ALL_SET_PREDICTORS if hasattr(hf, f"{name}Config")]
"""Those that the installed version of Transformers has: Deimv2 since 5.8, RfDetr since 5.15."""

_RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_DECODER = {"decoder_layers": 2, "decoder_ffn_dim": 16, "num_queries": 12, "num_labels": 3}
_ENCODER = {"encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


def _detr_kin(name):
    stages = ["stage2", "stage3", "stage4"] if name == "DeformableDetr" else ["stage4"]
    backbone = hf.ResNetConfig(**_RESNET, out_features=stages)
    width = {"hidden_size": 16} if name == "DabDetr" else {"d_model": 16}
    levels = {"num_feature_levels": 3, "d_model": 32} if name == "DeformableDetr" else {}
    return {
        **_DECODER, **_ENCODER, **width, **levels, "backbone_config": backbone, "auxiliary_loss": True, "dropout": 0.0
    }  # fmt: skip


def _rt_detr_kin(name):
    backbone = hf.RTDetrResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"])
    own = {"max_num_bins": 8, "lqe_hidden_dim": 8} if name in ("DFine", "Deimv2") else {}
    if name == "Deimv2":
        own["encoder_type"] = "hybrid"
    return {
        **_DECODER, **_ENCODER, **own, "backbone_config": backbone, "encoder_in_channels": [8, 16, 16],
        "encoder_hidden_dim": 16, "decoder_in_channels": [16, 16, 16], "d_model": 16, "num_denoising": 6,
        "hidden_expansion": 0.5, "anchor_image_size": None,
    }  # fmt: skip


def _lw_detr_kin(name):
    if name == "LwDetr":
        backbone = hf.LwDetrViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, pretrain_image_size=64,
            out_indices=[1, 2], window_block_indices=[0], num_windows=4,
        )  # fmt: skip
        own = {"projector_scale_factors": [1.0]}
    else:
        backbone = hf.models.rf_detr.RfDetrDinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16, num_windows=4,
            out_features=["stage1", "stage2"],
        )  # fmt: skip
        own = {}
    return {
        **_DECODER, **own, "backbone_config": backbone, "d_model": 16, "decoder_self_attention_heads": 2,
        "decoder_cross_attention_heads": 2, "group_detr": 3, "dropout": 0.0,
    }  # fmt: skip


def set_predictor(name, **options):
    """A model of Transformers for object detection, in training mode."""
    torch.manual_seed(0)
    if name in ("LwDetr", "RfDetr"):
        settings = _lw_detr_kin(name)
    elif name in ("RTDetr", "RTDetrV2", "DFine", "Deimv2"):
        settings = _rt_detr_kin(name)
    else:
        settings = _detr_kin(name)
    config = getattr(hf, f"{name}Config")(**{**settings, **options})
    return getattr(hf, f"{name}ForObjectDetection")(config).train()


def set_batch(*counts, seed=1, size=64):
    """Pixels ``[b, 3, size, size]`` and labels as Transformers takes them, with so many objects in each image."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        center, extent = torch.rand(2, count, 2, generator=generator)
        boxes = torch.cat([0.3 + 0.4 * center, 0.1 + 0.3 * extent], 1)
        labels.append({"class_labels": torch.randint(0, 3, (count,), generator=generator), "boxes": boxes})
    return {"pixel_values": torch.rand(len(counts), 3, size, size, generator=generator), "labels": labels}


# --- torchvision ----------------------------------------------------------------------------------------------------

TORCHVISION = ["RetinaNet", "FCOS", "SSD", "FasterRCNN", "MaskRCNN"]


class _Levels(nn.Module):
    """Three levels of 32 channels, strides 8, 16, 32."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 4, 2), nn.GroupNorm(4, 32), nn.ReLU())
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x):
        x, levels = self.stem(x), {}
        for i, level in enumerate(self.levels):
            x = levels[str(i)] = level(x)
        return levels


def _anchors(ratios, *sizes):
    return AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))


def torchvision_model(name):
    """A detector of torchvision's class of this name, in training mode; images of 64 x 96 pixels are not resized."""
    torch.manual_seed(0)
    size = {"min_size": 64, "max_size": 96}
    backbone = _Levels()
    if name == "RetinaNet":
        model = tv.RetinaNet(backbone, 4, anchor_generator=_anchors((1.0,), (16,), (32,), (64,)), **size)
    elif name == "FCOS":
        model = tv.FCOS(backbone, 4, anchor_generator=_anchors((1.0,), (8,), (16,), (32,)), **size)
        nn.init.ones_(model.head.regression_head.bbox_reg.bias)  # libraries differ in the slope of an empty box
    elif name == "SSD":
        anchors = DefaultBoxGenerator([[2]] * 3, scales=[0.15, 0.3, 0.6, 0.9])
        head = tv.ssd.SSDHead([32] * 3, anchors.num_anchors_per_location(), 4)
        model = tv.ssd.SSD(backbone, anchors, (96, 64), 4, head=head)
    else:
        pool = {"box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=96)}
        if name == "MaskRCNN":
            pool["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2"], 4, 2, canonical_scale=96)
            pool["mask_head"] = MaskRCNNHeads(32, [16], 1)
            pool["mask_predictor"] = MaskRCNNPredictor(16, 16, 4)
        model = getattr(tv, name)(
            backbone, box_head=TwoMLPHead(32 * 9, 32), box_predictor=FastRCNNPredictor(32, 4),
            rpn_anchor_generator=_anchors((0.5, 1.0, 2.0), (16,), (32,), (64,)), rpn_post_nms_top_n_train=100,
            **pool, **size,
        )  # fmt: skip
    return model.train()


def learned(model):
    """Trainable parameters in one vector without gradient."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def gradient(model, loss):
    """The loss's gradient in these parameters, 0 where it has none, in one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])
