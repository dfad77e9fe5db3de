"""The Triton kernels: run on a CPU by Triton's interpreter, and compiled for a GPU that need not be here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from concordet.losses import functional as F
from concordet.ranking import backend_torch as passes
from tests.ranking.cases import CASES, TOLERANCE, random_case, values_and_gradients

ROOT = Path(__file__).parents[2]


def test_the_interpreter_gives_the_definitions_numbers_and_nothing_waits():
    pytest.importorskip("triton")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ranking/interpreted.py"]
    done = subprocess.run(words, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout or "100%" in done.stdout


def compiled(kernel, types, constants, architecture):
    """A kernel as it would be built for a GPU that need not be here."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    try:
        source = ASTSource(kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    except TypeError:  # Triton 3.2, which comes with torch 2.6
        if architecture >= 100:
            pytest.skip("this Triton knows no such GPU")
        source = ASTSource(kernel, signature=types, constants=constants)
    done = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert len(done.asm["cubin"]) > 1000
    return done.asm["ttir"]


ARCHITECTURES = [(80, "fp32", False), (90, "fp32", False), (90, "fp32", True), (90, "fp64", True), (100, "fp32", False)]
"""Compute capability, type of the logits, and whether there are over 2^31 of them."""


@pytest.mark.parametrize(("architecture", "dtype", "wide"), ARCHITECTURES)
def test_kernels_compile_for_a_gpu_with_64_bit_addresses(architecture, dtype, wide):
    """Over 2^31 logits, numbers of rows are 64-bit, and so is every address made of them."""
    pytest.importorskip("triton")
    from concordet.ranking import backend_triton as kernels

    rows = "i64" if wide else "i32"
    locate = {"keys": f"*{dtype}", "weights": "*fp64", "segments": "*i64", "thresholds": f"*{dtype}"}
    locate |= {"origin": "*fp64", "interval": "*i32", "weight": "*fp64", "moment": "*fp64", "n": rows}
    locate |= dict.fromkeys(("size", "top", "copies", "n_segments"), "i32")
    spread = {"keys": f"*{dtype}", "interval": "*i32", "origin": "*fp64", "lines": "*fp64", "out": f"*{dtype}"}
    spread |= {"n": rows, "n_intervals": "i32", "n_bins": "i32"}
    for kernel, types, options in (
        (kernels._locate_and_sum, locate, {"WEIGHTED": True, "SEGMENTED": False, "BLOCK": kernels.BLOCK}),
        (kernels._locate_and_sum, locate, {"WEIGHTED": False, "SEGMENTED": True, "BLOCK": kernels.BLOCK}),
        (kernels._spread, spread, {"BLOCK": kernels.BLOCK}),
    ):
        code = compiled(kernel, types, options, architecture)
        # the row of a key is its block's times 1024, which is made 64 bits wide before it is multiplied
        assert "arith.extsi" in code.split("arith.muli")[0]


@pytest.mark.parametrize(
    ("architecture", "wide", "kind"), [(80, False, 2), *[(90, True, kind) for kind in range(4)], (100, False, 2)]
)
def test_whole_losses_compile_for_a_gpu(architecture, wide, kind):
    pytest.importorskip("triton")
    from concordet.ranking import fused_kernels as kernels
    from concordet.ranking.backend_triton import BLOCK
    from concordet.ranking.fused_triton import COLUMNS, ROWS

    rows, tile = "i64" if wide else "i32", {"ROWS": ROWS, "COLUMNS": COLUMNS}
    own = {"scores": "*fp32", "aux_values": "*fp64", "owner": "*i32"}
    wide_ones = dict.fromkeys(("thresholds", "origin", "local", "sums", "lines", "coefficients", "errors"), "*fp64")
    gather = {"logits": "*fp32", "aux": "*fp32", "segments": "*i64", "positive": "*i64", **own, "p": "i32"}
    intervals = {**own, "order": "*i64", **pick(wide_ones, "thresholds", "origin"), "edges": "*i32", "local": "*fp64"}
    intervals |= {"sorted_aux": "*fp64", "sorted_owner": "*i32", "p": "i32", "top": "i32"}
    locate = {
        "logits": "*fp32",
        "labels": "*i64",
        "segments": "*i64",
        **pick(wide_ones, "thresholds", "origin"),
        "interval": "*i32",
    }
    locate |= {"weight": "*fp64", "moment": "*fp64", "seen": "*fp64", "n": rows}
    locate |= dict.fromkeys(("size", "top", "copies", "n_segments"), "i32")
    rank = {**own, "edges": "*i32", **pick(wide_ones, "local", "sums", "lines"), "values": "*fp64"}
    rank |= {**pick(wide_ones, "coefficients", "errors"), "inverse": "*fp64", "p": "i32", "size": "i32"}
    rank |= {"n_segments": "i32", "gain": "fp32", "gain_rest": "fp32"}
    spread = {"logits": "*fp32", "interval": "*i32", **pick(wide_ones, "origin", "lines"), "out": "*fp32"}
    spread |= {"n": rows, "size": "i32", "n_segments": "i32"}
    scatter = {**own, "order": "*i64", "positive": "*i64", **pick(wide_ones, "coefficients", "errors")}
    scatter |= {"inverse": "*fp64", "accumulated": "*fp64", "seen": "*fp64", "out": "*fp32", "values": "*fp32"}
    scatter |= {"weights": "*fp32", "n": rows, "p": "i32", "n_segments": "i32"}
    several = {"SEGMENTED": architecture == 90}
    delta, block = {"DELTA": 0.7, **several}, {"BLOCK": BLOCK}
    codes = [
        compiled(kernel, types, constants, architecture)
        for kernel, types, constants in (
            (kernels.gather, gather, {"KIND": kind, **several, **block}),
            (kernels.find_intervals, intervals, {**delta, "GAP": 2.8, "AUX": True, **tile}),
            (kernels.locate_and_sum, locate, {**several, **block}),
            (
                kernels.rank_positives,
                rank,
                {**delta, "SELF": 0.5, "MIN_FP": 1e-5, "MIN_W": 1e-10, "KIND": kind, **tile},
            ),
            (kernels.spread, spread, {"N_TERMS": 2, **block}),
            (kernels.scatter, scatter, {**delta, "WANTED": True, "KIND": kind, **tile}),
        )
    ]
    # a number of type float32 would move ties: those of Python stay as precise as they are
    assert "dense<0.69999999999999996> : tensor<32xf64>" in codes[3]
    for code in (codes[2], codes[4]):
        assert "arith.extsi" in code.split("arith.muli")[0]


def pick(types, *names):
    return {name: types[name] for name in names}


class TestChoosing:
    def test_a_cpu_has_no_kernels(self):
        logits, labels, _ = random_case(3, 20, seed=0)
        with passes.use_backend("triton"), pytest.raises(ValueError, match="needs tensors on a CUDA device, got cpu"):
            F.ap_loss(logits, labels)

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(ValueError, match="torch, triton, numba, auto, got 'cuda'"), passes.use_backend("cuda"):
            pass

    def test_a_missing_one_is_refused(self, monkeypatch):
        monkeypatch.setattr(passes, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="needs the package triton; install it"), passes.use_backend("triton"):
            pass

    def test_where_each_runs(self, monkeypatch):
        class OnCuda:
            is_cuda, is_cpu = True, False

        chosen = []
        monkeypatch.setattr(passes, "import_module", chosen.append)
        passes.backend_for(OnCuda())
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        passes.backend_for(OnCuda())
        passes.backend_for(torch.zeros(3))
        assert chosen == ["concordet.ranking.backend_" + name for name in ("triton", "torch", "torch")]


def test_a_wrong_number_of_positives_is_an_error():
    logits, labels, _ = random_case(3, 20, seed=0)
    torch.testing.assert_close(F.ap_loss(logits, labels, n_positives=3), F.ap_loss(logits, labels))
    with pytest.raises(ValueError, match="n_positives must be 3, the number of labels that are 1, got 4"):
        F.ap_loss(logits, labels, n_positives=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(("p", "n"), [(1, 1), (129, 1000), (2000, 100_000)])
    def test_equals_quadratic(self, name, delta, p, n):
        logits, labels, side = random_case(p, n, seed=p, dtype=torch.float32)
        wide = logits.double().requires_grad_()
        method = "quadratic" if n < 10_000 else "exact"
        expected = values_and_gradients(
            CASES[name].outputs(wide, labels, side.double(), delta=delta, method=method), wide
        )
        there = logits.cuda().requires_grad_()
        got = values_and_gradients(CASES[name].outputs(there, labels.cuda(), side.cuda(), delta=delta), there)
        for value, wanted in zip(got[0], expected[0], strict=True):
            assert value == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        for gradient, wanted in zip(got[1], expected[1], strict=True):
            scale = float(wanted.abs().max())
            torch.testing.assert_close(
                gradient.cpu().double(), wanted, rtol=1e-5, atol=TOLERANCE[torch.float32] * scale
            )

    def test_a_step_is_captured_in_a_graph(self):
        logits, labels, side = (value.cuda() for value in random_case(500, 50_000, seed=1, dtype=torch.float32))
        logits.requires_grad_()

        def step():
            logits.grad = None
            ranking, sorting = F.rank_sort_loss(logits, labels, side, n_positives=500)
            (ranking + sorting).backward()

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        expected = logits.grad.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        logits.grad.zero_()
        graph.replay()
        torch.testing.assert_close(logits.grad, expected)

    def test_nothing_waits(self):
        logits, labels, side = (value.cuda() for value in random_case(500, 50_000, seed=2, dtype=torch.float32))
        logits.requires_grad_()
        F.rank_sort_loss(logits, labels, side, n_positives=500)  # kernels are compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            sum(F.rank_sort_loss(logits, labels, side, n_positives=500)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_deterministic_runs_are_the_same_to_the_bit(self):
        logits, labels, side = (value.cuda() for value in random_case(500, 500_000, seed=3, dtype=torch.float32))
        torch.use_deterministic_algorithms(True)
        try:
            runs = []
            for _ in range(5):
                leaf = logits.clone().requires_grad_()
                sum(F.rank_sort_loss(leaf, labels, side)).backward()
                runs.append(leaf.grad)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(run, runs[0]) for run in runs)
