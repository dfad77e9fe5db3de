"""ONNX files: the network from ``torch.onnx``, after a graph that resizes, normalizes and pads images."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import compose, helper, numpy_helper, parser
from onnxscript import FLOAT, INT64, opset18
from torch import nn

from concordet.detectors.parts.resize import IMAGENET_MEAN, IMAGENET_STD, Resize

OPSET = 18
op: Any = opset18  # its annotations refuse Python constants, which onnxscript turns into tensors
IR_VERSION = 10


def suppress_in_onnx(boxes: FLOAT, scores: FLOAT, groups: INT64, iou_threshold: float, limit: int, count: int) -> Any:
    """:func:`concordet.export.suppression.suppress` by ONNX's NonMaxSuppression, one class per group."""
    classes = op.Constant(value=numpy_helper.from_array(_column(count)))  # [c, 1]
    minus = op.Constant(value_float=-1.0)
    per_class = op.Where(op.Equal(op.Unsqueeze(groups, [1]), classes), op.Unsqueeze(scores, [1]), minus)
    # the score threshold 0 drops padding rows: their scores are negative
    chosen = op.NonMaxSuppression(boxes, per_class, limit, iou_threshold, 0.0)  # [m, 3]: image, class, box
    where = op.Gather(chosen, [0, 2], axis=1)
    ones = op.Cast(op.Slice(op.Add(op.Mul(where, 0), 1), [0], [1], [1]), to=1)
    mask = op.ScatterND(op.Mul(scores, 0.0), where, op.Squeeze(ones, [1]))
    return op.Greater(mask, 0.5)


def _column(count: int) -> Any:
    return torch.arange(count)[:, None].numpy()


def core_model(core: nn.Module, *, dynamic: bool, sides: tuple[int, int], multiple: int) -> onnx.ModelProto:
    """The graph from ``pixels``, ``size`` and ``original`` to detections, for any batch size.

    Args:
        core: :class:`concordet.export.graph.Core`.
        dynamic: Whether height and width are dynamic.
        sides: Height and width of the example; without ``dynamic`` those of all images.
        multiple: Number that height and width are multiples of.
    """
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes: dict[int, Any] = {0: batch}
    if dynamic:
        for axis, name in ((2, "rows"), (3, "columns")):
            shapes[axis] = multiple * torch.export.Dim(name, min=1, max=8192 // multiple)
    example = (torch.rand(2, 3, *sides), torch.tensor(sides, dtype=torch.float32), torch.tensor([480.0, 640.0]))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(core, example, dynamic_shapes=(shapes, None, None))
        result = torch.onnx.export(
            program,
            input_names=["pixels", "size", "original"],
            output_names=["boxes", "labels", "scores"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.concordet.suppress.default: suppress_in_onnx},
        )
    if result is None:
        raise ValueError("torch.onnx made no model; report it with the detector's name")
    return result.model_proto


def input_model(resize: Resize, multiple: int) -> onnx.ModelProto:
    """The graph from ``images`` ``[batch, 3, height, width]`` in [0, 1] to the inputs of the network.

    Sizes are computed in float64, as PyTorch does: with float32, a side of 320 pixels could become 319.
    """
    if resize.keeps_shape:
        target = f"""
          shorter = ReduceMin <keepdims = 1> (shape)
          longer = ReduceMax <keepdims = 1> (shape)
          shorter_d = Cast <to = 11> (shorter)
          longer_d = Cast <to = 11> (longer)
          most_shorter = Constant <value = double[1] {{{float(resize.size[0])}}}> ()
          most_longer = Constant <value = double[1] {{{float(resize.size[1])}}}> ()
          first = Div (most_shorter, shorter_d)
          second = Div (most_longer, longer_d)
          scale = Min (first, second)
          shape_d = Cast <to = 11> (shape)
          scaled = Mul (shape_d, scale)
          whole = Floor (scaled)
          target = Cast <to = 7> (whole)"""
    else:
        target = f"target = Constant <value = int64[2] {{{resize.size[0]}, {resize.size[1]}}}> ()"
    axes = "".join(_bilinear(axis, source) for axis, source in ((2, "normalized"), (3, "resized2")))
    text = f"""
      <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
      prepare (float[batch, 3, height, width] images)
        => (float[batch, 3, rows, columns] pixels, float[2] size, float[2] original)
      {{
          mean = Constant <value = float[1, 3, 1, 1] {{{", ".join(map(repr, IMAGENET_MEAN))}}}> ()
          std = Constant <value = float[1, 3, 1, 1] {{{", ".join(map(repr, IMAGENET_STD))}}}> ()
          centered = Sub (images, mean)
          normalized = Div (centered, std)
          shape = Shape <start = 2, end = 4> (images)
          original = Cast <to = 1> (shape)
          {target}
          size = Cast <to = 1> (target)
          zero_f = Constant <value = float {{0.0}}> ()
          half = Constant <value = float {{0.5}}> ()
          zero = Constant <value = int64 {{0}}> ()
          one = Constant <value = int64 {{1}}> ()
          {axes}
          multiple = Constant <value = int64[1] {{{multiple}}}> ()
          less_one = Constant <value = int64[1] {{{multiple - 1}}}> ()
          more = Add (target, less_one)
          blocks = Div (more, multiple)
          padded = Mul (blocks, multiple)
          missing = Sub (padded, target)
          before = Constant <value = int64[6] {{0, 0, 0, 0, 0, 0}}> ()
          pads = Concat <axis = 0> (before, missing)
          pixels = Pad (resized3, pads, zero_f)
      }}"""
    return parser.parse_model(text)


def _bilinear(axis: int, source: str) -> str:
    """Linear interpolation along one axis with PyTorch's weights; runtimes round the weights of Resize differently."""
    i, shape = axis, f"{axis - 2}"
    return f"""
          index{i} = Constant <value = int64 {{{shape}}}> ()
          in{i} = Gather (shape, index{i})
          out{i} = Gather (target, index{i})
          in_f{i} = Cast <to = 1> (in{i})
          out_f{i} = Cast <to = 1> (out{i})
          step{i} = Div (in_f{i}, out_f{i})
          range{i} = Range (zero, out{i}, one)
          range_f{i} = Cast <to = 1> (range{i})
          middle{i} = Add (range_f{i}, half)
          moved{i} = Mul (middle{i}, step{i})
          shifted{i} = Sub (moved{i}, half)
          position{i} = Max (shifted{i}, zero_f)
          floor{i} = Floor (position{i})
          low{i} = Cast <to = 7> (floor{i})
          last{i} = Sub (in{i}, one)
          next{i} = Add (low{i}, one)
          high{i} = Min (next{i}, last{i})
          flat{i} = Sub (position{i}, floor{i})
          column{i} = Constant <value = int64[{4 - axis}] {{{", ".join(["-1", "1"][: 4 - axis])}}}> ()
          weight{i} = Reshape (flat{i}, column{i})
          at_low{i} = Gather <axis = {axis}> ({source}, low{i})
          at_high{i} = Gather <axis = {axis}> ({source}, high{i})
          change{i} = Sub (at_high{i}, at_low{i})
          part{i} = Mul (change{i}, weight{i})
          resized{i} = Add (at_low{i}, part{i})"""


def write(
    path: Path, core: nn.Module, resize: Resize, multiple: int, sides: tuple[int, int], meta: Mapping[str, Any]
) -> None:
    """Writes an ONNX file of images to detections."""
    network = core_model(core, dynamic=resize.keeps_shape, sides=sides, multiple=multiple)
    network.ir_version = IR_VERSION
    prepare = input_model(resize, multiple)
    del network.metadata_props[:]
    model = compose.merge_models(
        compose.add_prefix(prepare, "input/", rename_inputs=False, rename_outputs=False),
        network,
        io_map=[(name, name) for name in ("pixels", "size", "original")],
    )
    model.producer_name = "concordet"
    helper.set_model_props(model, {"concordet": json.dumps(meta)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
