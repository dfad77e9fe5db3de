"""Calibrators keep the order of detections, and bring scores to expected IoUs on images they did not see."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression

from concordet.calibration import Calibrator, evaluate_calibration, fit_calibrator, fit_map
from concordet.calibration.calibrator import ClassCalibration, has_raw_scores
from concordet.calibration.maps import MAPS, Isotonic, Linear, Platt, Temperature, strictly_increasing
from concordet.measures import analyze
from concordet.measures.calibration import bin_index

from ..measures.scenes import SHAPES, make_scene

METHODS = ("isotonic", "linear", "platt", "temperature")


def scenes(seed=0, **shape):
    """A ground truth and results with scores in [0, 1]."""
    truth, results = make_scene(seed, **shape)
    return truth, [{**r, "score": float(np.clip(r["score"], 0, 1))} for r in results]


def with_scores(results, scores):
    return [{**r, "score": float(s)} for r, s in zip(results, scores, strict=True)]


def adversarial(results):
    """Scores that tempt a map to make or break ties."""
    n, rng = len(results), np.random.default_rng(3)
    near = np.float32(0.25) + np.arange(n) * np.float32(2**-25)
    return {
        "constant": np.full(n, 0.5),
        "tiny": 1e-30 * (1 + np.arange(n)),
        "zeros and ones": np.arange(n) % 2,
        "float32 neighbors": near.astype(np.float32).astype(float),
        "float64 neighbors": np.nextafter(0.5, 1) + np.arange(n) * 2.0**-53,
        "near one": 1 - np.arange(n) * 2.0**-53,
        "few levels": rng.integers(0, 4, n) / 4,
        "denormal": np.arange(n) * 5e-324,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["plain", "ties", "crowds", "many_classes"])
def test_order_and_average_precision_stay(method, shape):
    truth, results = scenes(**SHAPES[shape])
    self_check(truth, results, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", list(adversarial([0])))
def test_order_stays_with_adversarial_scores(method, case):
    truth, results = scenes(n_detections=150)
    self_check(truth, with_scores(results, adversarial(results)[case]), method)


def self_check(truth, results, method):
    """Every comparison of two scores of a class comes out as before, and so does all that rests on order only."""
    calibrated = fit_calibrator(truth, results, method=method, min_detections=20, min_matched=3).apply(results)
    by_class = {}
    for before, after in zip(results, calibrated, strict=True):
        by_class.setdefault(before["category_id"], []).append((before["score"], after["score"]))
        assert {**after, "score": None} == {**before, "score": None}
        assert 0 <= after["score"] <= 1
    for pairs in by_class.values():
        before, after = np.array(pairs).T
        assert (np.sign(before[:, None] - before) == np.sign(after[:, None] - after)).all()
    first, second = analyze(truth, results).to_dict(), analyze(truth, calibrated).to_dict()
    for name in ("AP", "AP50", "AP75", "APs", "AR100", "AP_upper", "AP_lower", "beta_cls", "oLRP", "oLRP_fp"):
        assert first[name] == second[name], name


def test_isotonic_is_the_closest_increasing_fit():
    """Against a brute-force search over all partitions into blocks (min-max formula of isotonic regression)."""
    rng = np.random.default_rng(0)
    scores, targets = np.sort(rng.random(9)), rng.random(9)
    expected = [max(min(targets[i : j + 1].mean() for j in range(k, 9)) for i in range(k + 1)) for k in range(9)]
    np.testing.assert_allclose(fit_map(scores, targets).increasing(scores), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["isotonic", "linear", "platt", "temperature"])
@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.5, 2.0], [0.5, 0.5], r"scores\[1\] must be in \[0, 1\], got 2; apply sigmoid to logits"),
        ([0.5, 0.5], [0.5, 50], r"targets\[1\] must be in \[0, 1\], got 50; give the IoU of each detection"),
        ([0.5, 0.5], [0.5], "scores and targets must have equal lengths, got 2 and 1"),
        ([0.5, float("nan")], [0.5, 0.5], r"scores\[1\] must be a finite number, got nan"),
    ],
)
def test_a_map_names_values_that_it_cannot_fit(scores, targets, message, method):
    with pytest.raises(ValueError, match=message):
        fit_map(scores, targets, method)


def test_a_map_is_fitted_to_lists_as_to_arrays():
    scores, targets = [0.1, 0.2, 0.3, 0.4], [0, 0.5, 0.5, 1]
    assert fit_map(scores, targets) == fit_map(np.array(scores), np.array(targets, float))


@pytest.mark.parametrize("decimals", [1, 2, 16])
def test_isotonic_with_ties_is_scikit_learns(decimals):
    rng = np.random.default_rng(3)
    scores = rng.random(400).round(decimals)
    targets = np.where(rng.random(400) < 0.4, 0.0, np.clip(scores + 0.3 * rng.normal(size=400), 0, 1))
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, targets)
    fitted, points = fit_map(scores, targets), np.linspace(0, 1, 97)
    np.testing.assert_allclose(fitted.increasing(points), expected.predict(points), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(fitted.scores, expected.X_thresholds_)


def test_linear_is_least_squares_and_never_falls():
    rng = np.random.default_rng(1)
    scores = rng.random(50)
    targets = np.clip(0.3 * scores + 0.2 + 0.05 * rng.normal(size=50), 0, 1)
    fitted, expected = fit_map(scores, targets, "linear"), LinearRegression().fit(scores[:, None], targets)
    assert (fitted.slope, fitted.intercept) == pytest.approx((expected.coef_[0], expected.intercept_), abs=1e-12)
    assert fit_map(scores, 1 - targets, "linear") == Linear(0.0, pytest.approx((1 - targets).mean()))


@pytest.mark.parametrize(("method", "n_parameters"), [("platt", 2), ("temperature", 1)])
def test_cross_entropy_fits_are_minima(method, n_parameters):
    """No parameter that is near has a lower cross entropy, and the truth is found where the data obey it."""
    scores = np.linspace(0.01, 0.99, 400)
    odds = np.log(scores / (1 - scores))
    true = Platt(0.7, -0.4) if method == "platt" else Temperature(1 / 0.7)
    fitted = fit_map(scores, true.increasing(scores), method)
    np.testing.assert_allclose(fitted.increasing(scores), true.increasing(scores), atol=1e-4)
    noisy = np.clip(true.increasing(scores) + np.random.default_rng(2).normal(size=400) * 0.2, 0, 1)
    fitted = fit_map(scores, noisy, method)
    best = (fitted.slope, fitted.intercept) if method == "platt" else (1 / fitted.temperature, 0.0)

    def entropy(slope, intercept):
        return np.mean(np.logaddexp(0, slope * odds + intercept) - noisy * (slope * odds + intercept))

    for step in itertools.product((-1e-2, 0, 1e-2), repeat=n_parameters):
        moved = np.add(best, np.pad(step, (0, 2 - n_parameters)))
        assert entropy(*best) <= entropy(*moved) + 1e-12


def loop_errors(truth, results, bins=25):
    """LaECE0 and LaACE0 of one image set without crowds, by loops over classes, images and detections."""
    laece, laace = [], []
    for category in truth["categories"]:
        objects = [a for a in truth["annotations"] if a["category_id"] == category["id"]]
        pairs = []
        for image in truth["images"]:
            free = [a for a in objects if a["image_id"] == image["id"]]
            own = [r for r in results if (r["image_id"], r["category_id"]) == (image["id"], category["id"])]
            for r in sorted(own, key=lambda r: -r["score"])[:100]:
                overlaps = [overlap(r["bbox"], a["bbox"]) for a in free]
                best = max(overlaps, default=0.0)
                pairs.append((r["score"], best))
                if best > 0:
                    free.pop(overlaps.index(best))
        if not objects or not pairs:
            continue
        error = 0.0
        for number in range(bins):
            own = [(p, y) for p, y in pairs if number / bins < p <= (number + 1) / bins or (p == 0 and number == 0)]
            error += abs(sum(y - p for p, y in own))
        laece.append(error / len(pairs))
        laace.append(sum(abs(y - p) for p, y in pairs) / len(pairs))
    return np.mean(laece), np.mean(laace)


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


@pytest.mark.parametrize("shape", ["plain", "ties", "many_classes", "few_objects"])
def test_errors_before_equal_a_loop(shape):
    truth, results = scenes(seed=4, **SHAPES[shape])
    _, report = evaluate_calibration(truth, results, n_resamples=0)
    laece, laace = loop_errors(truth, results)
    assert report["before"]["LaECE0"] == pytest.approx(laece, abs=1e-12)
    assert report["before"]["LaACE0"] == pytest.approx(laace, abs=1e-12)


def ranking_results(n_images=120, seed=0):
    """Objects whose detections are ordered well and scored all below 0.05, as after a ranking loss."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "a"}, {"id": 8, "name": "b"}]}
    results = []
    for image in range(n_images):
        truth["images"].append({"id": image})
        for x, category in ((0, 3), (200, 8)):
            box = [x, 0, 100, 100]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": box}
            )
            for _ in range(6):
                width = rng.uniform(10, 100) if rng.random() < 0.5 else 0.0
                found = [x, 0, width, 100] if width else [x, 500, 50, 50]
                score = 0.02 + 0.02 * width / 100 + 0.002 * rng.normal()
                results.append({"image_id": image, "category_id": category, "bbox": found, "score": abs(score)})
    return truth, results


@pytest.mark.parametrize(("method", "share"), [("isotonic", 0.5), ("platt", 0.5), ("linear", 0.8)])
def test_errors_fall_on_unseen_images(method, share):
    truth, results = ranking_results()
    _, report = evaluate_calibration(truth, results, method=method, n_resamples=50)
    for name in ("LaECE0", "AIC_mean"):
        assert report["after"][name] < share * report["before"][name]
        low, high = report["intervals"][name]["difference"]
        assert low <= report["after"][name] - report["before"][name] <= high < 0
    assert report["after"]["AP"] == report["before"]["AP"]


def test_cross_fitting_never_scores_what_it_fitted():
    """Each image's only detection has another class: a fit that saw it would be exact, one that did not cannot be."""
    truth = {
        "images": [{"id": i} for i in range(6)],
        "categories": [{"id": i, "name": str(i)} for i in range(6)],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": i, "bbox": [0, 0, 10, 10]} for i in range(6)],
    }
    widths = (1, 9, 2, 8, 3, 7)
    results = [{"image_id": i, "category_id": i, "bbox": [0, 0, 10, w], "score": 0.5} for i, w in enumerate(widths)]
    _, report = evaluate_calibration(
        truth, results, method="linear", folds=6, n_resamples=0, min_detections=1, min_matched=1
    )
    targets = np.array(widths) / 10
    others = (targets.sum() - targets) / 5
    assert report["after"]["LaACE0"] == pytest.approx(np.abs(others - targets).mean(), abs=1e-3)


def test_bins_are_open_below_and_closed_above():
    scores = np.array([0.0, 0.04, 0.3, 0.30000001, 1.0])
    assert bin_index(scores, 25).tolist() == [0, 0, 7, 7, 24]
    assert bin_index(scores, 10).tolist() == [0, 0, 2, 3, 9]


def test_intervals_are_those_of_resampled_data_sets():
    """The weighted sums of a draw equal the errors of a data set in which images stand as often as they were drawn."""
    truth, results = scenes(seed=7, n_images=5)
    from concordet.calibration import evaluation, fitting
    from concordet.measures.reading.dataset import read_dataset

    dataset = read_dataset(truth, results)
    matched = fitting.match_all(dataset, 100)
    times = np.array([2.0, 0.0, 1.0, 3.0, 0.0])
    sums = evaluation._Sums(matched, np.ones(len(matched.scores), bool), times[None])
    got = sums.errors(matched.scores)
    again = {"images": [], "annotations": [], "categories": truth["categories"]}
    copies = []
    for image, count in zip(truth["images"], times.astype(int), strict=True):
        for _ in range(count):
            ident = len(again["images"]) + 1
            again["images"].append({"id": ident})
            again["annotations"] += [
                {**a, "image_id": ident} for a in truth["annotations"] if a["image_id"] == image["id"]
            ]
            copies += [{**r, "image_id": ident} for r in results if r["image_id"] == image["id"]]
    again["annotations"] = [{**a, "id": i + 1} for i, a in enumerate(again["annotations"])]
    _, expected = evaluate_calibration(again, copies, n_resamples=0)
    for name, values in got.items():
        assert values[0] == pytest.approx(expected["before"][name], abs=1e-12), name


@pytest.fixture(scope="module")
def fitted():
    truth, results = ranking_results(60)
    return fit_calibrator(truth, results), results


class TestForms:
    def test_records_and_array_agree(self, fitted):
        calibrator, results = fitted
        rows = np.array([[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in results])
        before = rows.copy()
        expected = [r["score"] for r in calibrator.apply(results)]
        assert calibrator.apply(rows)[:, 5].tolist() == expected
        assert (rows == before).all()

    def test_tensors_keep_dtype_and_order(self, fitted):
        calibrator, _ = fitted
        scores = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 0.05
        image = {"boxes": torch.zeros(500, 4), "labels": torch.tensor([1, 2]).repeat(250), "scores": scores}
        (got,) = calibrator.apply([image], labels={1: 3, 2: 8})
        assert got["scores"].dtype == torch.float32
        assert got["boxes"] is image["boxes"]
        for label in (1, 2):
            own = image["labels"] == label
            assert torch.equal(scores[own].argsort(), got["scores"][own].argsort())
            assert len(got["scores"][own].unique()) == len(scores[own].unique())
        expected = calibrator.calibrate(scores.double().numpy(), np.array([3, 8] * 250))
        np.testing.assert_allclose(got["scores"].numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
    def test_order_across_images(self, dtype):
        """Random scores, which most of a map's range is flat for; float64 scores may come in any number of calls."""
        rng = np.random.default_rng(0)
        truth, results = ranking_results(150)
        results = with_scores(results, np.sort(rng.random(len(results)) * 0.05).astype(dtype))
        hit = [r["bbox"][1] == 0 for r in results]
        assert 0 < sum(hit) < len(hit)
        calibrator = fit_calibrator(truth, results)
        by_image = [[r for r in results if r["image_id"] == image["id"]] for image in truth["images"]]
        images = [
            {"scores": np.array([r["score"] for r in own], dtype), "labels": np.array([r["category_id"] for r in own])}
            for own in by_image
        ]
        calls = [calibrator.apply(images)]
        if dtype == np.float64:
            calls.append([calibrator.apply(image) for image in images])
        before = analyze(truth, results).to_dict()
        for call in calls:
            scores = np.concatenate([image["scores"] for image in call])
            assert scores.dtype == (np.float32 if dtype == np.float16 else dtype)
            for ident in (3, 8):
                own = [r["category_id"] == ident for own in by_image for r in own]
                raw = np.array([r["score"] for own in by_image for r in own])[own]
                assert (np.sign(raw[:, None] - raw) == np.sign(scores[own][:, None] - scores[own])).all()
            after = analyze(truth, with_scores([r for own in by_image for r in own], scores)).to_dict()
            for name in ("AP", "AP50", "beta_cls", "oLRP"):
                assert after[name] == before[name], name

    def test_columns_of_each_image_are_checked(self, fitted):
        images = [{"scores": np.zeros(n), "labels": np.ones(3 - n)} for n in (1, 2)]
        with pytest.raises(ValueError, match=r"columns of the same length, got shapes \(1,\) and \(2,\)"):
            fitted[0].apply(images)

    def test_a_file_gives_the_same_calibrator(self, fitted, tmp_path):
        calibrator, results = fitted
        calibrator.save(tmp_path / "cal.json")
        again = Calibrator.load(tmp_path / "cal.json")
        assert again == calibrator
        assert again.apply(results) == calibrator.apply(results)
        content = json.loads((tmp_path / "cal.json").read_text())
        assert content["format"] == "concordet calibrator"
        assert {c["name"] for c in content["classes"]} == {"a", "b"}

    def test_unknown_classes_take_the_shared_map(self, fitted):
        calibrator, _ = fitted
        got = calibrator.apply([{"category_id": 99, "score": 0.03}])[0]["score"]
        assert got == calibrator.shared(np.array([0.03]))[0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "must be a file that concordet calibrate wrote"),
            ({"format": "concordet calibrator", "version": 7}, "must be of version 1, got 7"),
            ({"format": "concordet calibrator", "version": 1}, "faulty 'shared'"),
        ],
    )
    def test_other_files_are_refused(self, content, message, tmp_path):
        path = tmp_path / "other.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            Calibrator.load(path)

    @pytest.mark.parametrize("key", ["scores", "values", "slope", "temperature"])
    def test_maps_that_do_not_increase_are_refused(self, key, fitted):
        content = fitted[0].to_dict()
        wrong = {
            "scores": {"kind": "isotonic", "scores": [0.5, 0.1], "values": [0.1, 0.2]},
            "values": {"kind": "isotonic", "scores": [0.1, 0.5], "values": [0.2, 0.1]},
            "slope": {"kind": "linear", "slope": -1.0, "intercept": 0.0},
            "temperature": {"kind": "temperature", "temperature": 0.0},
        }[key]
        with pytest.raises(ValueError, match="calibration maps"):
            Calibrator.from_dict({**content, "shared": wrong})

    @pytest.mark.parametrize("score", [-0.1, 1.5, float("nan"), 87.0])
    def test_scores_outside_the_unit_interval_are_refused(self, score, fitted):
        with pytest.raises(ValueError, match=r"scores must be in \[0, 1\]"):
            fitted[0].apply([{"category_id": 3, "score": score}])

    def test_other_detections_are_refused(self, fitted):
        with pytest.raises(ValueError, match="detections must be a list of COCO results"):
            fitted[0].apply([{"box": 3}])


class TestAwkwardInput:
    def test_few_detections_take_the_shared_map_and_say_why(self):
        truth, results = ranking_results(60)
        few = [r for r in results if r["category_id"] == 3 or r["image_id"] < 5]
        calibrator = fit_calibrator(truth, few)
        assert calibrator.classes[3].reason is None
        assert calibrator.classes[8].reason == "30 detections are fewer than the 100 needed for a separate map"
        assert calibrator.classes[8].map == calibrator.shared

    def test_no_true_positive(self):
        truth, results = ranking_results(40)
        nowhere = [{**r, "bbox": [900, 900, 5, 5]} for r in results]
        calibrated = fit_calibrator(truth, nowhere).apply(nowhere)
        assert max(r["score"] for r in calibrated) < 1e-3
        self_check(truth, nowhere, "isotonic")

    def test_a_class_that_was_never_detected(self):
        truth, results = ranking_results(40)
        calibrator = fit_calibrator(truth, [r for r in results if r["category_id"] == 3])
        assert calibrator.classes[8].n_detections == 0
        assert calibrator.classes[8].threshold is None

    def test_no_detections(self):
        truth, _ = ranking_results(4)
        calibrator = fit_calibrator(truth, [])
        assert calibrator.apply([]) == []
        assert calibrator.shared == MAPS["identity"]()

    def test_one_image_cannot_be_cross_fitted(self):
        truth, results = ranking_results(1)
        with pytest.raises(ValueError, match="at least 2 images"):
            evaluate_calibration(truth, results)
        assert fit_calibrator(truth, results).fit["n_images"] == 1

    def test_images_without_detections_count_as_images(self):
        truth, results = ranking_results(30)
        fit = fit_calibrator(truth, [r for r in results if r["image_id"] < 10]).fit
        assert (fit["n_images"], fit["n_objects"]) == (30, 60)

    def test_folds_are_those_used(self):
        truth, results = ranking_results(3)
        assert evaluate_calibration(truth, results, folds=5, n_resamples=0)[1]["folds"] == 3
        assert evaluate_calibration(truth, results, folds=2, n_resamples=0)[1]["folds"] == 2

    def test_an_unknown_option_is_that_of_the_function_called(self):
        with pytest.raises(TypeError, match=r"evaluate_calibration\(\) got an unexpected keyword .*'min_detection'"):
            evaluate_calibration(*ranking_results(3), min_detection=5)

    def test_zero_overlap_is_no_match(self):
        """With pycocotools' rule IoU >= 0 the box far away would take the object."""
        truth = {
            "images": [{"id": 1}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
        }
        results = [
            {"image_id": 1, "category_id": 1, "bbox": [50, 50, 10, 10], "score": 0.9},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 2], "score": 0.8},
        ]
        calibrator = fit_calibrator(truth, results, min_detections=1, min_matched=1)
        assert calibrator.classes[1].n_matched == 1

    def test_crowds_count_nowhere(self):
        truth, results = ranking_results(40)
        crowd = [{**a, "iscrowd": 1} if a["category_id"] == 8 else a for a in truth["annotations"]]
        inside = [r for r in results if r["category_id"] == 3 or r["bbox"][1] == 0]
        calibrator = fit_calibrator({**truth, "annotations": crowd}, inside)
        assert calibrator.classes[8].n_detections == 0
        assert calibrator.classes[3].n_detections == sum(r["category_id"] == 3 for r in inside)


def test_thresholds_cut_where_those_of_the_analysis_do():
    truth, results = ranking_results()
    calibrator = fit_calibrator(truth, results)
    calibrated = calibrator.apply(results)
    for entry in analyze(truth, results).to_dict()["per_class"]:
        ident = entry["id"] if "id" in entry else entry["category_id"]
        kept = {i for i, r in enumerate(results) if r["category_id"] == ident and r["score"] >= entry["lrp_threshold"]}
        above = calibrator.thresholds()[ident]
        assert kept == {i for i, r in enumerate(calibrated) if r["category_id"] == ident and r["score"] >= above}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_least_possible_amounts(dtype):
    """Against a loop that raises each value above the one before."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 30, 80).astype(float)
    values = (np.sort(rng.integers(0, 5, 30)) / 8).astype(dtype)[scores.astype(int)]
    got = strictly_increasing(scores, values)
    last, expected = None, {}
    for score in np.unique(scores):
        value = values[scores == score][0]
        last = value if last is None or value > last else np.nextafter(last, dtype(2))
        expected[score] = last
    assert got.dtype == dtype
    assert got.tolist() == [expected[s] for s in scores]


def test_the_upper_end_stays_at_one():
    scores = np.arange(5.0)
    got = strictly_increasing(scores, np.ones(5))
    assert got[-1] == 1
    assert (np.diff(got) > 0).all()


def test_every_map_is_strictly_increasing():
    """On neighboring float32 numbers everywhere, a flat isotonic map, a clipped line and saturated sigmoids too."""
    maps = [Isotonic((0.5,), (0.3,)), Linear(50.0, -20.0), Platt(80.0, 9.0), Temperature(1e-3), Linear(0.0, 1.0)]
    for start in (0.0, 1e-38, 1e-20, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.99999):
        numbers = [np.float32(start)]
        for _ in range(50):
            numbers.append(np.nextafter(numbers[-1], np.float32(1)))
        column = np.unique(np.array(numbers, np.float64))
        for fitted in maps:
            assert (np.diff(fitted(column)) > 0).all(), (fitted, start)


def test_errors_equal_those_of_the_measures():
    truth, results = scenes(seed=5, **SHAPES["crowds"])
    _, report = evaluate_calibration(truth, results, n_resamples=0)
    expected = analyze(truth, results).to_dict()
    for name in ("LaECE0", "LaACE0", "D_ECE", "AIC_mean"):
        assert report["before"][name] == pytest.approx(expected[name], abs=1e-12), name


def test_raw_scores_are_found_wherever_they_are_in_a_file(tmp_path):
    record = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    for records, expected in (([record] * 100, False), ([record] * 100 + [record | {"raw_score": 0.1}], True)):
        path = tmp_path / f"{expected}.json"
        path.write_text(json.dumps(records))
        assert has_raw_scores(path) is expected
    (tmp_path / "empty.json").touch()
    for path in (tmp_path / "empty.json", tmp_path / "none.json", tmp_path):
        assert not has_raw_scores(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_order_within_an_image_stays_in_every_precision(form, dtype):
    """A nearly flat map brings scores closer than the precision can tell apart."""
    calibrator = Calibrator("linear", {1: ClassCalibration("a", Linear(1e-4, 0.7))}, Linear(1e-4, 0.7))
    scores = np.array([0.25, 0.251, 0.252], dtype)
    found = {"scores": form(scores), "labels": form(np.array([1, 1, 1]))}
    after = np.asarray(calibrator.apply(found)["scores"])
    assert after.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert (np.diff(after) > 0).all()


def test_scores_that_are_integers_are_not_cut():
    calibrator = Calibrator("linear", {1: ClassCalibration("a", Linear(0.5, 0.2))}, Linear(0.5, 0.2))
    after = calibrator.apply({"scores": torch.tensor([1, 0]), "labels": torch.tensor([1, 1])})["scores"]
    assert after.tolist() == pytest.approx([0.7, 0.2], abs=1e-4)
