"""Losses in Transformers' set predictors: the installed loss trains, and nothing else changes.

Runs with every version that pyproject.toml admits; models that a version lacks are left out.
"""

import copy
import io

import pytest
import torch
import transformers as hf
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from concordet.assigned import BACKGROUND
from concordet.boxes import paired_iou
from concordet.detectors import install, installed_criterion, list_installable, uninstall
from concordet.losses import BoxTerm, build_criterion, functional, register_coupling, register_loss
from tests.detectors.adapters.tiny_models import (
    ALL_SET_PREDICTORS,
    SET_PREDICTORS,
    gradient,
    learned,
    set_batch,
    set_predictor,
)

DENOISING = ["RTDetr", "RTDetrV2", "DFine", "Deimv2"]
OURS = ("loss_ranking", "loss_sorting", "loss_box", "loss_l1")


def outputs_of(model, batch, seed=3):
    """A forward pass; models that draw denoising queries draw the same each time."""
    torch.manual_seed(seed)
    return model(**copy.deepcopy(batch))


def seen_records(model):
    records = []
    installed_criterion(model).register_forward_pre_hook(lambda _, given: records.append(given[0]))
    return records


@pytest.mark.parametrize("name", SET_PREDICTORS)
class TestEveryModel:
    def test_only_our_terms_train_classes_and_boxes(self, name):
        model, batch = set_predictor(name), set_batch(3, 0, 2)
        own = outputs_of(model, batch).loss_dict
        install(model, "rank_sort")
        records = seen_records(model)
        outputs = outputs_of(model, batch)
        layers = 3 if name in (*DENOISING, "LwDetr", "RfDetr") else 2  # two of the decoder, and the encoder
        assert len(records) == layers
        assert sum(k.startswith("loss_ranking") for k in outputs.loss_dict) == layers
        replaced = ("loss_ce", "loss_vfl", "loss_mal", "loss_bbox", "loss_giou")
        assert any(k.startswith(replaced) for k in own)
        assert not any(k.startswith(replaced) for k in outputs.loss_dict if "_dn_" not in k)
        total = sum(v for k, v in outputs.loss_dict.items() if not k.startswith("cardinality"))
        torch.testing.assert_close(outputs.loss, total)
        for record in records:
            got = torch.autograd.grad(outputs.loss, (record.logits, record.regression.deltas), retain_graph=True)
            for mine, other in zip(got, rank_sort_gradients(record), strict=True):
                assert other.abs().sum() > 0
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)

    def test_a_step_follows_our_gradient(self, name):
        model, batch = set_predictor(name), set_batch(3, 2)
        theirs = gradient(model, outputs_of(model, batch).loss)
        install(model, "rank_sort")
        before = learned(model)
        outputs = outputs_of(model, batch)
        ours = gradient(model, outputs.loss)
        assert ours.isfinite().all()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        outputs_of(model, batch).loss.backward()
        optimizer.step()
        after = learned(model)
        torch.testing.assert_close(before - after, ours, rtol=1e-3, atol=1e-4)
        assert (theirs - ours).norm() > 0.1 * theirs.norm()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("training", [True, False])
    def test_default_is_the_models_own(self, name, training, dtype):
        """To the last bit: the library's own function runs, in whatever version is installed."""
        model, batch = set_predictor(name).train(training), set_batch(3, 0, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            own = outputs_of(model, batch)
            same_loss(outputs_of(install(model, "default"), batch), own)
            coupled = outputs_of(install(model, "default+concordance(0.3)"), batch)
        extra = {k: v for k, v in coupled.loss_dict.items() if k not in own.loss_dict}
        assert extra
        assert all(k.startswith("loss_concordance") for k in extra)
        torch.testing.assert_close(coupled.loss, own.loss + sum(extra.values()), check_dtype=False)
        coupled.loss_dict = {k: v for k, v in coupled.loss_dict.items() if k not in extra}
        coupled.loss = own.loss
        same_loss(coupled, own)

    @pytest.mark.parametrize("options", [{"auxiliary_loss": False}, {"num_denoising": 0}])
    def test_default_with_other_configurations(self, name, options):
        if "num_denoising" in options and name not in DENOISING:
            pytest.skip("has no denoising queries")
        model, batch = set_predictor(name, **options), set_batch(3, 0, 2)
        own = outputs_of(model, batch)
        same_loss(outputs_of(install(model, "default"), batch), own)
        records = seen_records(install(model, "rank_sort"))
        outputs_of(model, batch)
        assert records
        assert all(len(r.positive) % 5 == 0 for r in records)  # each object once, or once per group of queries
        assert name in ("LwDetr", "RfDetr") or all(len(r.positive) == 5 and len(r.labels) == 36 for r in records)

    @pytest.mark.parametrize("loss", ["rank_sort", "alrp", "default+concordance(0.3)"])
    def test_outputs_and_weights_stay(self, name, loss):
        model, pixels = set_predictor(name).eval(), set_batch(3, 2)["pixel_values"]
        with torch.no_grad():
            before, state = model(pixels), copy.deepcopy(model.state_dict())
            after = install(model, loss)(pixels)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert torch.equal(after.logits, before.logits)
        assert torch.equal(after.pred_boxes, before.pred_boxes)

    def test_other_terms_stay(self, name):
        model, batch = set_predictor(name), set_batch(3, 2)
        own = outputs_of(model, batch).loss_dict
        got = outputs_of(install(model, "rank_sort"), batch).loss_dict
        kept = {k for k in own if "_dn_" in k or k.startswith(("loss_fgl", "loss_ddf", "cardinality"))}
        assert {k for k in got if not k.startswith(OURS)} == kept
        assert any("_dn_" in k for k in kept) is (name in DENOISING)
        assert any(k.startswith("loss_fgl") for k in kept) is (name in ("DFine", "Deimv2"))
        union = ("loss_fgl_aux", "loss_ddf_aux") if name == "Deimv2" else ()  # over matches of all layers
        for k in kept:
            if not k.startswith(union or "-"):
                torch.testing.assert_close(got[k], own[k], rtol=0, atol=0)

    def test_uninstalling_gives_the_loss_back(self, name):
        model, batch = set_predictor(name), set_batch(2, 1)
        own, keys, children = outputs_of(model, batch), list(model.state_dict()), dict(model.named_modules())
        function = model.loss_function
        assert install(model, "rank_sort") is model
        assert list(model.state_dict()) == keys
        assert dict(model.named_modules()) == children
        assert uninstall(model).loss_function is function
        torch.testing.assert_close(outputs_of(model, batch).loss, own.loss, rtol=0, atol=0)
        with pytest.raises(ValueError, match=f"no loss is installed in this {name}ForObjectDetection"):
            uninstall(model)

    def test_losses_of_users(self, name):
        """A registered loss with the terms of a built-in one, and a registered coupling."""

        @register_loss("users_quality_focal", box=BoxTerm("giou", 2.0, "score"))
        def quality_focal(assigned, ious):
            losses = functional.quality_focal_loss(assigned.logits, assigned.class_targets(ious), reduction="none")
            return assigned.normalized_sum(losses)

        @register_coupling("users_gap")
        def gap(assigned, ious):
            return (assigned.scores() - ious).abs().sum()

        model, batch = set_predictor(name), set_batch(3, 2)
        default = outputs_of(model, batch).loss
        expected = outputs_of(install(model, "quality_focal"), batch)
        got = outputs_of(install(model, "users_quality_focal"), batch)
        assert got.loss_dict.keys() == expected.loss_dict.keys()
        torch.testing.assert_close(got.loss, expected.loss)
        for loss, without in (("users_quality_focal", expected.loss), ("default", default)):
            coupled = outputs_of(install(model, f"{loss}+users_gap(2)"), batch)
            gaps = [v for k, v in coupled.loss_dict.items() if k.startswith("loss_users_gap")]
            assert len(gaps) >= 2
            torch.testing.assert_close(coupled.loss, without + sum(gaps))

    @pytest.mark.parametrize("loss", ["rank_sort", "harmonic"])
    def test_images_without_objects(self, name, loss):
        model = install(set_predictor(name), loss)
        assert gradient(model, outputs_of(model, set_batch(0, 0)).loss).isfinite().all()

    def test_half_precision(self, name):
        model, batch = install(set_predictor(name), "rank_sort"), set_batch(3, 2)
        exact = outputs_of(model, batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            outputs = outputs_of(model, batch)
        assert outputs.loss.dtype == torch.float32
        assert gradient(model, outputs.loss).isfinite().all()
        assert outputs.loss.item() == pytest.approx(exact.item(), rel=0.2)

    def test_validation_loss(self, name):
        """Losses of a validation set: no denoising, one group of queries."""
        model = install(set_predictor(name), "rank_sort").eval()
        records = seen_records(model)
        with torch.no_grad():
            outputs = outputs_of(model, set_batch(3, 2))
        assert outputs.loss.isfinite()
        assert all(len(r.positive) == 5 and len(r.labels) == 24 for r in records)

    def test_copies_are_installed_for_themselves(self, name):
        model, batch = install(set_predictor(name), "rank_sort"), set_batch(3)
        copies = [copy.deepcopy(model)]
        if name not in ("LwDetr", "RfDetr"):  # whose own hooks do not pickle
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copies.append(torch.load(file, weights_only=False))
        expected = outputs_of(model, batch).loss
        for other in copies:
            loss = outputs_of(other, batch).loss
            torch.testing.assert_close(loss, expected, rtol=0, atol=0)
            loss.backward()
            uninstall(other)
        assert all(p.grad is None for p in model.parameters())
        assert "loss_ranking" in outputs_of(model, batch).loss_dict

    def test_it_is_saved_as_the_model_it_is(self, name, tmp_path):
        """The loss is no part of what is saved: it is installed again."""
        model = install(set_predictor(name), "rank_sort")
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).train()
        expected, got = model.state_dict(), loaded.state_dict()
        assert all(torch.equal(got[k], expected[k]) for k in expected)
        with pytest.raises(ValueError, match="no loss is installed"):
            installed_criterion(loaded)
        batch = set_batch(3)
        torch.testing.assert_close(
            outputs_of(install(loaded, "rank_sort"), batch).loss, outputs_of(model, batch).loss, rtol=0, atol=0
        )


def same_loss(got, expected):
    """Two outputs have the same loss, terms and outputs of the layers, to the last bit."""
    assert got.loss.dtype == expected.loss.dtype
    assert torch.equal(got.loss, expected.loss)
    assert got.loss_dict.keys() == expected.loss_dict.keys()
    assert all(torch.equal(got.loss_dict[k], expected.loss_dict[k]) for k in expected.loss_dict)
    assert (got.auxiliary_outputs is None) == (expected.auxiliary_outputs is None)
    for mine, other in zip(got.auxiliary_outputs or [], expected.auxiliary_outputs or [], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) for k in other)


def rank_sort_gradients(record):
    """Gradients of RS Loss and of its balanced L1 and GIoU terms in a record's logits and boxes, from the functions."""
    logits, boxes = (x.detach().clone().requires_grad_() for x in (record.logits, record.regression.deltas))
    place = record.positive, record.labels[record.positive]
    quality, labels = torch.zeros_like(logits.detach()), torch.zeros_like(logits, dtype=torch.int64)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    quality[place] = paired_iou(corners.detach(), record.gt_boxes)
    labels[place] = 1
    parts = functional.rank_sort_loss(logits.flatten(), labels.flatten(), quality.flatten())
    total = ranking = parts.ranking + parts.sorting
    weights = logits.detach()[record.positive].amax(1).sigmoid()
    weights = weights / weights.sum()
    for each in (generalized_box_iou_loss(corners, record.gt_boxes), (boxes - record.regression.targets).abs().sum(1)):
        term = (weights * each).sum()
        total = total + term * (ranking / term).detach()
    return torch.autograd.grad(total, (logits, boxes))


class TestRecords:
    @pytest.mark.parametrize("name", ["Detr", "DeformableDetr"])
    def test_against_a_matching_of_our_own(self, name):
        """Records from the model's outputs, SciPy and the definitions of the costs; gradients from the functions."""
        model, batch = set_predictor(name, auxiliary_loss=False), set_batch(3, 0, 2)
        install(model, "rank_sort")
        records = seen_records(model)
        outputs = outputs_of(model, batch)
        (record,) = records
        raw = outputs.logits.detach()
        if name == "Detr":
            costs = [-image.softmax(-1) for image in raw]
            p = raw.softmax(-1)[..., :-1]
            logits = torch.log(p) - torch.log1p(-p)
        else:
            p = raw.sigmoid()
            costs = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())
            costs, logits = list(costs), raw
        if name == "DeformableDetr" and model.config.class_cost != 2:
            costs = [c / 2 * model.config.class_cost for c in costs]
        labels = torch.full((3, 12), BACKGROUND)
        for i, (cost, boxes, target) in enumerate(
            zip(costs, outputs.pred_boxes.detach(), batch["labels"], strict=True)
        ):
            corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, target["boxes"])]
            total = cost[:, target["class_labels"]] + 5 * torch.cdist(boxes, target["boxes"], p=1)
            rows, columns = linear_sum_assignment(total - 2 * generalized_box_iou(*corners))
            labels[i, rows] = target["class_labels"][columns]
        assert record.labels.tolist() == labels.flatten().tolist()
        assert len(record.positive) == 5
        torch.testing.assert_close(record.logits, logits.flatten(0, 1))
        assert record.image_ids.tolist() == [0, 0, 0, 2, 2]
        assert sorted(record.gt_ids.tolist()) == [0, 1, 2, 3, 4]

    def test_groups_of_queries_are_matched_each(self):
        model = install(set_predictor("LwDetr"), "rank_sort")
        records = seen_records(model)
        outputs_of(model, set_batch(3, 2))
        assert all(len(r.positive) == 3 * 5 and len(r.labels) == 2 * 3 * 12 for r in records)

    def test_denoising_queries_are_no_part_of_ours(self):
        model = install(set_predictor("RTDetr"), "rank_sort")
        records = seen_records(model)
        outputs = outputs_of(model, set_batch(3, 2))
        assert outputs.logits.shape[1] > 12
        assert all(len(r.labels) == 2 * 12 for r in records)


class TestAgainstTheLibrary:
    """Losses that both have: ours, written on its own, gives the same."""

    @pytest.mark.parametrize(("name", "loss"), [("Detr", "ce"), ("ConditionalDetr", "focal"), ("DabDetr", "focal")])
    def test_whole(self, name, loss):
        model, batch = set_predictor(name), set_batch(3, 0, 2)
        own = outputs_of(model, batch)
        got = outputs_of(install(model, loss), batch)
        torch.testing.assert_close(got.loss, own.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(model, got.loss), gradient(model, own.loss), rtol=1e-4, atol=1e-5)

    def test_varifocal(self):
        model, batch = set_predictor("RTDetr", num_denoising=0), set_batch(1, 0, 1)
        for target in batch["labels"]:
            target["boxes"] = torch.tensor([[0.5, 0.5, 1.0, 1.0]] * len(target["boxes"])).view(-1, 4)  # no IoU is 0
        own = outputs_of(model, batch).loss_dict
        got = outputs_of(install(model, "varifocal"), batch).loss_dict
        assert "loss_vfl" in own
        for layer in (key.removeprefix("loss_vfl") for key in own if key.startswith("loss_vfl")):
            torch.testing.assert_close(got[f"loss_classification{layer}"], own[f"loss_vfl{layer}"])
            torch.testing.assert_close(got[f"loss_l1{layer}"], own[f"loss_bbox{layer}"])


class TestInstalling:
    def test_float64(self):
        """Objects may stay in float32."""
        model, batch = install(set_predictor("DeformableDetr"), "rank_sort"), set_batch(3, 2)
        expected = outputs_of(model, batch).loss
        batch["pixel_values"] = batch["pixel_values"].double()
        got = outputs_of(model.double(), batch).loss
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_a_module_would_be_ignored(self):
        """Why the loss is no module: Transformers takes one for a child of the model, and goes on with its own."""
        model, batch = set_predictor("Detr"), set_batch(2)
        own = outputs_of(model, batch).loss

        class Loss(nn.Module):
            def forward(self, *args, **kwargs):
                raise AssertionError("called")

        model.loss_function = Loss()
        torch.testing.assert_close(outputs_of(model, batch).loss, own, rtol=0, atol=0)
        with pytest.raises(ValueError, match="has a module named loss_function, which Transformers never calls"):
            install(model, "rank_sort")
        del model.loss_function
        install(model, "rank_sort")
        assert not isinstance(model.loss_function, nn.Module)
        assert outputs_of(model, batch).loss != own

    def test_a_loss_function_that_was_there_comes_back(self):
        model = set_predictor("Detr")

        def mine(*args, **kwargs):
            return torch.zeros(()), {}, None

        model.loss_function = mine
        assert uninstall(install(install(model, "ap"), "rank_sort")).loss_function is mine

    def test_default_refuses_a_loss_function_that_it_cannot_add_to(self):
        model = set_predictor("Detr")
        model.loss_function = lambda *args, **kwargs: (torch.zeros(()), {}, None)
        with pytest.raises(ValueError, match=r"loss must replace the loss_function .* got 'default\+pse'"):
            install(model, "default+pse")
        del model._loss_function
        assert "loss_ce" in outputs_of(install(model, "default+pse"), set_batch(2)).loss_dict
        install(model, "default")  # ours is replaced, not added to
        assert installed_criterion(model).couplings == {}

    def test_every_installable_model_is_tested(self):
        names = {name for name in list_installable() if name.endswith("ForObjectDetection")}
        assert names == {f"{name}ForObjectDetection" for name in ALL_SET_PREDICTORS}

    def test_trainer(self, tmp_path):
        model = set_predictor("RTDetr")
        examples = [
            {"pixel_values": set_batch(2, seed=i)["pixel_values"][0], "labels": set_batch(2, seed=i)["labels"][0]}
            for i in range(8)
        ]

        def collate(items):
            return {
                "pixel_values": torch.stack([x["pixel_values"] for x in items]), "labels": [x["labels"] for x in items]
            }  # fmt: skip

        install(model, "rank_sort+concordance(0.3)")
        records = seen_records(model)
        before = copy.deepcopy(model.state_dict())
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            learning_rate=1e-3, remove_unused_columns=False, report_to=[], use_cpu=True, save_steps=2, logging_steps=1,
            disable_tqdm=True, eval_strategy="steps", eval_steps=2,
        )  # fmt: skip
        trainer = hf.Trainer(model, arguments, collate, examples, examples[:2])
        trainer.train()
        steps = [r for r in records if r.logits.requires_grad]
        assert len(steps) == 2 * 2 * 3  # steps, accumulated batches, layers
        assert len(records) > len(steps)  # evaluation
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(logged) == 2
        assert all(x > 0 for x in logged)
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
        saved = type(model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
        assert all(torch.equal(saved[k], v) for k, v in model.state_dict().items())

    @pytest.mark.slow
    def test_compiled(self):
        model, batch = install(set_predictor("Detr"), "rank_sort"), set_batch(3, 2)
        expected = outputs_of(model, batch).loss
        got = outputs_of(torch.compile(model, backend="eager"), batch).loss
        torch.testing.assert_close(got, expected)
        got.backward()

    def test_a_criterion_is_every_layers(self):
        criterion = build_criterion("alrp")
        model = install(set_predictor("Detr"), criterion)
        assert installed_criterion(model) is criterion
        assert {"loss_box", "loss_box_0"} < set(outputs_of(model, set_batch(3)).loss_dict)

    def test_other_models_are_refused_by_name(self):
        config = hf.YolosConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=[32, 32])
        model = hf.YolosForObjectDetection(config)
        with pytest.raises(
            ValueError, match=r"model must be one of .* DetrForObjectDet.*, got YolosForObjectDetection"
        ):
            install(model, "rank_sort")
        with pytest.raises(ValueError, match="DetrForObjectDetection has no auxiliary head for 'iou'"):
            install(set_predictor("Detr"), "focal+iou_head")


def test_it_learns():
    """A few steps on one image: what the loss ranks comes to the top."""
    model, batch = install(set_predictor("DeformableDetr"), "rank_sort"), set_batch(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(15):
        outputs = model(**batch)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        history.append(outputs.loss_dict["loss_ranking"].item())
    assert history[-1] < 0.2 < history[0]
