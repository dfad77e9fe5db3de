"""Recipes: each is a configuration that the command line takes; what they train is built, and trained for a step."""

import re
import subprocess
from collections import Counter, defaultdict
from dataclasses import fields, replace

import pytest
import torch
from torchvision.models import get_model_weights, get_weight

from concordet.cli import main
from concordet.cli.commands.train import parser
from concordet.data import collate
from concordet.detectors import build_detector, list_detectors
from concordet.detectors.networks.backbones import RESNETS, TIMM
from concordet.engine.config import TrainConfig
from concordet.engine.data import build_dataset
from concordet.engine.recipes import FOLDER, describe_recipe, list_recipes, load_recipe, recipe_path, with_recipes
from concordet.engine.training.schedule import build_optimizer, learning_rate_factor
from concordet.errors import UsageError
from tests.trees import TREES, voc_tree

RECIPES = {name: load_recipe(name) for name in list_recipes()}
TABLES = {
    "correlation_loss": {"1", "2", "3", "4", "5", "6", "7"},
    "association_loss": {"I", "III"},
    "alrp_loss": {"2", "4"},
    "harmonic_loss": {"1", "2", "3", "4", "5"},
    "bucketed_ranking_losses": {f"4.{number}" for number in range(1, 10)},
}


def distinct(*fields):
    """One recipe for each combination of what these functions tell of one."""
    found = {}
    for name, config in RECIPES.items():
        found.setdefault(str([field(config) for field in fields]), name)
    return list(found.values())


def architecture(config: TrainConfig):
    own = {key: value for key, value in config.options.items() if key not in ("train_sizes", "score_threshold")}
    fixed = config.image_size if config.detector in ("ssd", "dssd", "refinedet", "yolact") else None
    return config.detector, config.backbone, own, fixed


DETECTORS_OF_THE_PAPERS = {
    "retinanet", "fcos", "foveabox", "atss", "paa", "ssd", "dssd", "refinedet", "faster_rcnn", "cascade_rcnn",
    "mask_rcnn", "yolact", "sparse_rcnn", "detr", "deformable_detr", "co_detr",
}  # fmt: skip


def test_every_detector_of_the_papers_has_a_recipe():
    """Other detectors need none: recipes reproduce tables of the five papers."""
    assert {config.detector for config in RECIPES.values()} == DETECTORS_OF_THE_PAPERS
    assert set(list_detectors()) >= DETECTORS_OF_THE_PAPERS


def test_every_table_has_recipes():
    found = defaultdict(set)
    for name, config in RECIPES.items():
        found[name.split("/")[0]] |= {row["table"] for row in config.paper["rows"]}
    assert found == TABLES


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_the_command_line_reads_what_the_file_says(self, name):
        options = parser()
        given = options.instantiate(options.parse_args(with_recipes(["--config", name, "--data.root", "X"])))
        settings = {item.name: given.as_dict()[item.name] for item in fields(TrainConfig)}
        config = RECIPES[name]
        assert TrainConfig(**settings) == replace(config, data=replace(config.data, root="X"))

    def test_it_says_what_it_stands_for(self, name):
        config = RECIPES[name]
        assert re.fullmatch(r".+ \(.+ 20\d\d\)", config.paper["title"])
        for row in config.paper["rows"]:
            figures = [value for key, value in row.items() if key.startswith("AP")]
            assert row["row"]
            assert figures
            assert all(0 < value < 100 for value in figures)
        assert recipe_path(name).read_text().startswith("# ")  # what the paper states, and what is missing here

    def test_its_backbone_is_known_and_its_weights_are_the_backbones(self, name):
        config = RECIPES[name]
        assert config.backbone in (*RESNETS, *TIMM)
        plain = config.backbone.removesuffix("_dcn")
        if plain in TIMM:
            assert config.weights is None  # timm's are no enumeration
        else:
            assert get_weight(config.weights) in get_model_weights(plain)


def test_sparse_rcnn_has_the_warm_up_of_mmdetection():
    warmups = {config.optim.warmup for config in RECIPES.values() if config.detector == "sparse_rcnn"}
    assert warmups == {500}


def test_weights_of_correlation_loss_are_stated_or_those_of_the_published_configurations():
    """Sec. 5.1 of the paper, and configs/CorrLoss of the authors' repository (FoveaBox 02, YOLACT 04)."""
    losses = {name.split("/")[1]: config.loss for name, config in RECIPES.items() if name.startswith("correlation")}
    stated = {
        "retinanet_r50_spearman": "spearman(0.1)",
        "foveabox_r50_concordance": "concordance(0.2)",
        "atss_r50_concordance": "concordance(0.3)",
        "paa_r50_concordance": "concordance(0.3)",
        "sparse_rcnn_r50_concordance": "concordance(0.3)",
        "sparse_rcnn_r50_spearman": "spearman(0.2)",
        "sparse_rcnn_r50_spearman_cityscapes": "spearman(0.6)",
        "yolact_r50_spearman": "spearman(0.5)",
    }
    published = {"foveabox_r50_spearman": "spearman(0.2)", "yolact_r50_concordance": "concordance(0.4)"}
    for name, coupling in (stated | published).items():
        assert losses[name].split("+")[1] == coupling, name


def test_rows_of_alrp_that_are_not_marked_as_multi_scale_train_at_one_size():
    """Of the rows of Table 4 that are quoted, FCOS's and DR Loss's have the mark."""
    marked = {name for name, config in RECIPES.items() if name.startswith("alrp_loss") and config.options}
    assert marked == {f"alrp_loss/{name}" for name in (
        "fcos_r101_640_800", "fcos_x101_64x4d_640_800", "retinanet_r101_640_800_dr", "retinanet_x101_64x4d_640_800_dr",
    )}  # fmt: skip


@pytest.mark.parametrize("name", distinct(architecture))
def test_full_size_is_built(name):
    config = RECIPES[name]
    with torch.device("meta"):
        model = build_detector(
            config.detector,
            num_classes=5,
            loss=config.loss,
            backbone=config.backbone,
            image_size=config.image_size,
            **config.options,
        )
    assert sum(p.numel() for p in model.parameters()) > 2e7
    sides = config.options.get("train_sizes")
    assert model.transform.min_size[: len(sides)] == tuple(sides) if sides else len(model.transform.min_size) == 1


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name) / "tree") for name, make in TREES.items()}


def nano(config: TrainConfig) -> TrainConfig:
    """The same run at a size for tests."""
    options = {key: [40, 56] if key == "train_sizes" else value for key, value in config.options.items()}
    return replace(config, size="nano", backbone=None, weights=None, image_size=(64, 96), options=options)


@pytest.mark.parametrize("name", distinct(lambda c: (c.detector, c.loss), lambda c: (c.data.name, c.data.augment)))
def test_one_step(name, trees):
    config = nano(RECIPES[name])
    data = replace(config.data, root=str(trees[config.data.name]))
    torch.manual_seed(0)
    dataset = build_dataset(data, "train", augment=True)
    assert len(build_dataset(data, "val")) == 2
    images, targets = collate([dataset[0], dataset[1]])
    model = build_detector(
        config.detector,
        num_classes=len(dataset.class_names),
        loss=config.loss,
        size="nano",
        image_size=config.image_size,
        **config.options,
    )
    optimizer = build_optimizer(model, config.optim)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    total = sum(model(images, targets).values())
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or 10.0)
    optimizer.step()
    assert total.isfinite()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert len(moved) > 0.8 * len(before)  # hard negatives may leave a level of SSD out
    assert learning_rate_factor(config.optim, 100 * config.optim.epochs)(100 * config.optim.epochs - 1) < 1


def test_a_recipe_trains_from_the_command_line(trees, tmp_path, capsys):
    """A whole run, only smaller; the run keeps what the paper reports."""
    small = ["--size", "nano", "--backbone", "null", "--weights", "null", "--image_size", "[64,96]", "--devices", "1"]
    short = ["--optim.epochs", "1", "--optim.milestones", "null", "--data.batch_size", "2", "--data.workers", "0"]
    out = tmp_path / "run"
    words = ["--config", "correlation_loss/atss_r50_rank_sort_concordance", "--data.root", str(trees["coco"])]
    assert main(["train", *words, *small, *short, "--accelerator", "cpu", "--out", str(out)]) == 0, capsys.readouterr()
    assert "AP: 40.2" in (out / "config.yaml").read_text()
    assert (out / "evaluation.json").is_file()


def test_names_are_those_of_files():
    assert [recipe_path(name) for name in list_recipes()] == sorted(FOLDER.rglob("*.yaml"))
    with pytest.raises(
        UsageError, match="recipe must be a name or a file, got x/y, which does not exist; see concordet list recipes"
    ):
        recipe_path("x/y")


def test_files_and_other_words_are_kept(tmp_path):
    file = tmp_path / "atss-optim.lr=0.1-seed2.yaml"  # a run of a study
    file.write_text("seed: 2")
    assert with_recipes([f"--config={file}"]) == [f"--config={file}"]
    words = ["--config", str(file), "--seed", "1", "alrp_loss/retinanet_r50_500_alrp"]
    assert with_recipes(words) == words
    with pytest.raises(UsageError, match=r"did you mean alrp_loss/retinanet_r50_500_alrp\?"):
        with_recipes(["--config", "alrp_loss/retinanet_r50_500_arlp"])
    assert with_recipes(["--config=alrp_loss/retinanet_r50_500_alrp"]) == [
        f"--config={FOLDER / 'alrp_loss/retinanet_r50_500_alrp.yaml'}"
    ]


def test_what_a_list_shows():
    shown = describe_recipe("harmonic_loss/faster_rcnn_r50_harmonic")
    assert (shown["detector"], shown["epochs"]) == ("faster_rcnn", 12)
    assert [row["table"] for row in shown["rows"]] == ["2", "3", "5"]
    assert shown["rows"][0]["AP"] == 39.3


class TestDocumentation:
    TEXT = (FOLDER.parent.parent / "docs" / "recipes.md").read_text()

    def test_it_counts_the_recipes(self):
        rows = re.findall(r"^\| `(\w+)` .* \| (\d+) \|$", self.TEXT, flags=re.MULTILINE)
        counts = Counter(name.split("/")[0] for name in RECIPES)
        assert {folder: int(count) for folder, count in rows} == counts

    def test_its_commands_name_recipes(self):
        assert set(re.findall(r"--config (\w+/\w+)", self.TEXT)) <= set(RECIPES)

    def test_two_years_of_voc_become_one_folder(self, tmp_path):
        voc_tree(tmp_path / "VOC2007", {"trainval": ["000001"], "test": ["000003", "000004"]})
        voc_tree(tmp_path / "VOC2012", {"trainval": ["2008_000002"]})
        (script,) = re.findall(r"```sh\n(.*?)```", self.TEXT, flags=re.DOTALL)
        subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True)
        data = replace(load_recipe("harmonic_loss/ssd300_r50_voc").data, root=str(tmp_path / "VOC0712"))
        assert len(build_dataset(data, "train")) == 2
        assert len(build_dataset(data, "val")) == 2
