"""What tests/ranking/test_kernels.py runs in a process of its own, where Triton's interpreter is on.

Kernels read the environment when they are defined, so that this cannot be switched on in the middle of a test run.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from concordet.losses import functional as F
from concordet.losses import value_checks
from concordet.ranking import backend_torch as passes
from concordet.ranking import exact, fused_triton, intervals, sums
from concordet.ranking import operator as engine
from concordet.ranking.exact import ExactCounts
from concordet.ranking.operator import UNKNOWN, RankingOptions, compute_terms
from tests.ranking.cases import CASES, DELTAS, TOLERANCE, random_case, values_and_gradients, views_case
from tests.ranking.operations import VIEWS

SIZES = [(1, 0), (1, 1), (2, 127), (3, 1000), (40, 1023), (129, 1024), (7, 2500)]


def run(name, backend, logits, labels, side, **options):
    logits = logits.clone().requires_grad_()
    with passes.use_backend(backend):
        return values_and_gradients(CASES[name].outputs(logits, labels, side, **options), logits)


def assert_close(got, expected, tolerance):
    for value, wanted in zip(got[0], expected[0], strict=True):
        assert value == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    for gradient, wanted in zip(got[1], expected[1], strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient.double(), wanted.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.fixture
def poisoned(monkeypatch):
    """Fills uninitialized memory with NaN, or with invalid intervals, so that reading it is noticed."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Every operation that would make the host wait for a GPU raises."""
    for module in (engine, intervals, passes, sums):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)


class TestKernels:
    @pytest.fixture(autouse=True)
    def many_positives(self, monkeypatch):
        monkeypatch.setattr(exact, "MAX_PAIRWISE_POSITIVES", 0)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize(("p", "n"), SIZES)
    def test_equal_quadratic(self, name, p, n, poisoned):
        for delta in (0.0, 0.5):
            case = random_case(p, n, seed=p + n, ties=p % 2 == 1)
            # positives without negatives are refused, unless their number shows that they are meant
            options = {"delta": delta, "n_positives": p}
            expected = run(name, "torch", *case, method="quadratic", **options)
            assert_close(run(name, "triton", *case, **options), expected, TOLERANCE[torch.float64])

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("delta", DELTAS)
    def test_equal_quadratic_in_every_dtype(self, dtype, delta, poisoned):
        logits, labels, side = random_case(30, 600, seed=1, dtype=dtype)
        wide = logits.double(), labels, side.double()
        expected = run("rank_sort", "torch", *wide, delta=delta, method="quadratic")
        assert_close(run("rank_sort", "triton", logits, labels, side, delta=delta), expected, TOLERANCE[dtype])

    def test_a_million_times_the_spread(self, poisoned):
        """Chains of positives far from one another: each has its own origin."""
        case = random_case(50, 900, seed=2, spread=1e6, dtype=torch.float32)
        expected = run("ap", "torch", *case, method="quadratic")
        assert_close(run("ap", "triton", *case), expected, TOLERANCE[torch.float32])

    def test_weights(self, poisoned):
        generator = torch.Generator().manual_seed(3)
        s, k = torch.randn(20, generator=generator).sort().values, torch.randn(3000, generator=generator)
        w = torch.rand(3000, generator=generator).double()
        with passes.use_backend("triton"):
            got = ExactCounts(s, k, 0.5, weights=w).above()[0]
        expected = ((k.double()[None] - s.double()[:, None]) + 0.5).clamp(0, 1) @ w
        torch.testing.assert_close(got, expected)

    def test_everything_above_all_windows(self, poisoned):
        logits = torch.cat([torch.tensor([-5.0, -4.0]), torch.linspace(3, 9, 2500)])
        labels = torch.cat([torch.ones(2), torch.zeros(2500)]).long()
        case = (logits, labels, torch.zeros(2502))
        expected = run("ap", "torch", *case, method="quadratic")
        assert_close(run("ap", "triton", *case), expected, TOLERANCE[torch.float32])

    def test_bucketed(self, poisoned):
        case = random_case(40, 900, seed=4)
        expected = run("ap", "torch", *case, method="bucketed")
        assert_close(run("ap", "triton", *case, method="bucketed"), expected, 1e-12)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("n_segments", [1, 7])
    def test_segments(self, name, n_segments, poisoned):
        case = random_case(40, 1100, seed=5)
        segments = torch.arange(len(case[0])) % n_segments
        logits = case[0].clone().requires_grad_()
        options = {"segments": segments, "n_segments": n_segments, "delta": 0.5}
        results = []
        for backend in ("torch", "triton"):
            with passes.use_backend(backend):
                outputs = CASES[name].outputs(logits, *case[1:], **options)
            results += [(outputs, torch.autograd.grad(sum(output.sum() for output in outputs), logits)[0])]
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["columns", "expanded"])
def test_views_are_read_as_what_they_show(name, dtype, layout, poisoned):
    plain, views = views_case(dtype)
    *views, segments = views[layout]
    logits = views[0].requires_grad_()
    for options in ({}, {"segments": segments, "n_segments": 1}):
        expected = run(name, "torch", *plain[:3], method="quadratic")
        with passes.use_backend("triton"):
            outputs = CASES[name].outputs(logits, *views[1:], **options)
        got = values_and_gradients(tuple(output.sum() for output in outputs), logits)
        assert_close(got, expected, TOLERANCE[dtype])


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device, or has a size that only the device knows."""

    WAITING = (
        "nonzero.", "_local_scalar_dense", "masked_select", "bincount", "unique", "equal.", "is_nonzero", "item",
        "repeat_interleave",
    )  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__ if "." in func.__name__ else f"{func.__name__}."
        assert not name.startswith(self.WAITING), f"{func} waits for the device"
        if name.startswith("index."):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{func} selects by a mask"
        return func(*args, **(kwargs or {}))


FUSED_LOSSES = [name for name in CASES if name != "interpolated_ap"]
FUSED_SIZES = [(1, 0), (1, 1), (2, 127), (31, 1000), (40, 1023), (129, 1025), (64, 2500)]


class TestFused:
    """A whole loss as kernels, for float32 logits."""

    @pytest.fixture(autouse=True)
    def in_the_kernels(self, monkeypatch):
        """Calls of the kernels, which every test makes."""
        calls, compute = [], fused_triton.compute
        monkeypatch.setattr(fused_triton, "compute", lambda *a, **k: calls.append(1) or compute(*a, **k))
        yield
        assert calls

    def compare(self, name, case, **options):
        wide = case[0].double(), case[1], case[2].double()
        expected = run(name, "torch", *wide, method="quadratic", **options)
        assert_close(run(name, "triton", *case, **options), expected, TOLERANCE[torch.float32])

    @pytest.mark.parametrize("name", FUSED_LOSSES)
    @pytest.mark.parametrize(("p", "n"), FUSED_SIZES)
    def test_equal_quadratic(self, name, p, n, poisoned):
        for delta in (0.0, 0.7):
            case = random_case(p, n, seed=p + n, ties=p % 2 == 1, dtype=torch.float32)
            self.compare(name, case, delta=delta, n_positives=p)

    @pytest.mark.parametrize("name", FUSED_LOSSES)
    @pytest.mark.parametrize("spread", [1e-4, 1e4, 1e6])
    def test_any_spread(self, name, spread, poisoned):
        """Chains of positives far from one another each have their own origin."""
        for delta in (1e-6, 0.1, 100.0):
            self.compare(name, random_case(50, 900, seed=2, spread=spread, dtype=torch.float32), delta=delta)

    def test_everything_above_all_windows(self, poisoned):
        logits = torch.cat([torch.tensor([-5.0, -4.0]), torch.linspace(3, 9, 2500)])
        labels = torch.cat([torch.ones(2), torch.zeros(2500)]).long()
        self.compare("ap", (logits, labels, torch.zeros(2502)))

    @pytest.mark.parametrize("name", FUSED_LOSSES)
    def test_labels_of_any_type(self, name, poisoned):
        logits, labels, side = random_case(20, 300, seed=3, dtype=torch.float32)
        expected = run(name, "triton", logits, labels, side)
        assert_close(run(name, "triton", logits, labels.to(torch.int8), side), expected, 0)

    def test_the_localization_of_alrp(self, poisoned):
        logits, labels, side = random_case(70, 500, seed=4, ties=True, dtype=torch.float32)
        errors = [side[labels == 1].clone().requires_grad_() for _ in range(2)]
        with passes.use_backend("triton"):
            got = F.alrp_loss(logits, labels, errors[0]).localization
        expected = F.alrp_loss(logits, labels, errors[1], method="quadratic").localization
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(v, e)[0] for v, e in zip((got, expected), errors, strict=True))
        )

    @pytest.mark.parametrize("name", FUSED_LOSSES)
    @pytest.mark.parametrize(("p", "n_segments", "delta"), [(40, 7, 0.7), (70, 3, 0.0), (3, 5, 0.7)])
    def test_segments(self, name, p, n_segments, delta, poisoned):
        logits, labels, side = random_case(p, 900, seed=p, ties=p == 70, dtype=torch.float32)
        options = {"segments": torch.arange(len(labels)) % n_segments, "n_segments": n_segments, "delta": delta}
        results = []
        for backend, leaf, method in (("torch", logits.double(), "quadratic"), ("triton", logits, "auto")):
            leaf = leaf.clone().requires_grad_()
            with passes.use_backend(backend):
                outputs = CASES[name].outputs(leaf, labels, side.to(leaf.dtype), method=method, **options)
            scales = torch.arange(1, n_segments + 1, dtype=leaf.dtype)
            gradients = [torch.autograd.grad(output @ scales, leaf, retain_graph=True)[0] for output in outputs]
            results.append([value.detach().double() for value in (*outputs, *gradients)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)

    def test_a_nan_spoils_its_own_ranking_only(self, poisoned):
        logits, labels, _ = random_case(8, 40, seed=9, dtype=torch.float32)
        segments = torch.arange(len(logits)) % 3
        logits[(labels == 0) & (segments == 1)] = torch.nan
        with value_checks(False), passes.use_backend("triton"):
            values = F.ap_loss(logits, labels, segments=segments, n_segments=3)
        assert values.isnan().tolist() == [False, True, False]

    def test_what_does_not_count_may_be_anything(self, poisoned):
        logits, labels, side = random_case(20, 300, seed=5, dtype=torch.float32)
        expected = run("rank_sort", "triton", logits, labels, side)
        logits[labels == -1] = torch.nan
        with value_checks(False):
            assert_close(run("rank_sort", "triton", logits, labels, side), expected, 0)

    @pytest.mark.parametrize("label", [0, 1])
    def test_nan_makes_values_nan(self, label, poisoned):
        logits, labels, side = random_case(20, 300, seed=6, dtype=torch.float32)
        logits[torch.nonzero(labels == label)[3]] = torch.nan
        with value_checks(False), passes.use_backend("triton"):
            assert all(value.isnan() for value in F.rank_sort_loss(logits, labels, side))

    @pytest.mark.parametrize("told", [19, 21])
    def test_a_wrong_number_of_positives_is_not_silent(self, told, as_on_a_device, poisoned):
        logits, labels, _ = random_case(20, 300, seed=7, dtype=torch.float32)
        with passes.use_backend("triton"):
            values, _, _ = compute_terms(
                logits, labels, None, None, "ap", [0.0], True, *RankingOptions(n_positives=told)
            )
        assert values.isnan().all()

    def test_values_only(self, poisoned):
        logits, labels, side = random_case(20, 300, seed=8, dtype=torch.float32)
        with passes.use_backend("triton"):
            got = F.rank_sort_loss(logits, labels, side)
        torch.testing.assert_close(got, F.rank_sort_loss(logits, labels, side, method="quadratic"))

    @pytest.mark.parametrize(("name", "most"), [("ap", 15), ("ndcg", 15), ("alrp", 20), ("rank_sort", 25)])
    def test_few_launches_and_no_waiting(self, name, most, as_on_a_device, monkeypatch):
        """All operations of a call and its backward pass, one for each sort, scan and kernel."""
        logits, labels, side = random_case(300, 3000, seed=9, dtype=torch.float32)
        aux = {"alrp": side[labels == 1].clone().requires_grad_(), "rank_sort": side}.get(name)
        counted = Launches()
        leaf = logits.clone().requires_grad_()
        loss = {"ap": F.ap_loss, "ndcg": F.ndcg_loss, "alrp": F.alrp_loss, "rank_sort": F.rank_sort_loss}[name]
        with passes.use_backend("triton"), value_checks(False):
            with counted:  # the operator as a whole, which a mode does not see into
                outputs = loss(leaf, labels, *([] if aux is None else [aux]), n_positives=300)
                outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
                torch.autograd.backward(outputs, [torch.ones(())] * len(outputs))
            counted.names.remove("ranking")
            counted.names = [name for name in counted.names if name != "ones"]
            options = RankingOptions(n_positives=300)
            settings = [0.0] if name == "ap" else []
            monkeypatch.setattr(fused_triton, "launch", counted.kernel(fused_triton.launch))
            with counted, NoWaiting():
                compute_terms(
                    logits, labels, None if aux is None else aux.detach(), None, name, settings, True, *options
                )
        assert len(counted.names) <= most, counted.names


class Launches(TorchDispatchMode):
    """Names of all operations that are no views and allocate more than memory, and of kernels."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def kernel(self, launch):
        def counted(kernel, *arguments, **options):
            self.names.append(str(kernel.fn.__name__))
            with _disable_current_modes():  # the interpreter's own operations
                launch(kernel, *arguments, **options)

        return counted


@pytest.mark.parametrize("positives_by", ["tree", "pairs"], indirect=True, scope="module")
@pytest.mark.usefixtures("positives_by")
class TestNoWaiting:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("backend", ["torch", "triton"])
    @pytest.mark.parametrize("delta", [0.0, 1.0])
    def test_no_loss_waits_for_the_device(self, name, backend, delta, as_on_a_device):
        logits, labels, side = random_case(30, 500, seed=5)
        side = side[labels == 1] if name == "alrp" else side if name == "rank_sort" else None
        with passes.use_backend(backend):
            settings = [1.0] if name == "interpolated_ap" else [0.0] if name == "ap" else []
            name = "ap" if settings else name
            options = RankingOptions(delta=delta, n_positives=30)
            arguments = (logits, labels, side, None, name, settings, True)
            expected = compute_terms(*arguments, *options)
            with NoWaiting():
                got = compute_terms(*arguments, *options)
        for mine, other in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, other)
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            compute_terms(logits, labels, None, None, "ap", [0.0], True, *options._replace(n_positives=UNKNOWN))

    @pytest.mark.parametrize("name", CASES)
    def test_segments_do_not_wait_either(self, name, as_on_a_device):
        logits, labels, side = random_case(30, 500, seed=5)
        aux = side[labels == 1] if name == "alrp" else side if name == "rank_sort" else None
        settings = [1.0] if name == "interpolated_ap" else [0.0] if name == "ap" else []
        options = RankingOptions(n_positives=30, n_segments=4)
        segments = torch.arange(len(logits)) % 4
        arguments = (logits, labels, aux, segments, "ap" if settings else name, settings, True, *options)
        expected = compute_terms(*arguments)
        with NoWaiting():
            got = compute_terms(*arguments)
        torch.testing.assert_close(got, expected)

    def test_the_same_as_on_the_host(self, monkeypatch):
        logits, labels, side = random_case(30, 500, seed=6)
        options = RankingOptions(delta=0.5, self_relation=0.5)
        expected = compute_terms(logits, labels, side, None, "rank_sort", [], True, *options)
        for module in (engine, intervals, passes, sums):
            monkeypatch.setattr(module, "on_host", lambda tensor: False)
        for deterministic in (False, True):
            monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda now=deterministic: now)
            got = compute_terms(logits, labels, side, None, "rank_sort", [], True, *options._replace(n_positives=30))
            for mine, other in zip(got, expected, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("told", [29, 31])
    def test_a_wrong_number_of_positives_is_not_silent(self, told, as_on_a_device):
        logits, labels, _ = random_case(30, 500, seed=7)
        values, _, _ = compute_terms(logits, labels, None, None, "ap", [0.0], True, *RankingOptions(n_positives=told))
        assert values.isnan().all()
