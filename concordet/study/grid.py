"""The grid of a study: detectors x losses x settings x seeds, with a run folder for each cell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from concordet.engine.config import (
    TrainConfig,
    flat,
    from_dict,
    load_config,
    save_config,
    to_dict,
    with_absolute_paths,
)
from concordet.errors import UsageError
from concordet.files import read_json, write_json
from concordet.locks import locked

NAME = "study.json"

NOT_VARIED = ("detector", "evaluate", "loss", "preset", "seed")
"""Settings with a place of their own in the grid, without an effect, or without which there is nothing to compare."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        detector: Name of the detector.
        loss: Name of the loss.
        settings: Settings that differ from the study's configuration, as pairs of dotted name and value.
        seed: Seed of the run.

    Example:
        >>> cell = Cell("atss", "rank_sort", (("optim.lr", 0.01),), seed=2)
        >>> cell.variant, cell.name
        ('optim.lr=0.01', 'atss-rank_sort-optim.lr=0.01-seed2')
    """

    detector: str
    loss: str
    settings: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def variant(self) -> str:
        """The settings as text; "" without any."""
        return ", ".join(f"{name}={_text(value)}" for name, value in self.settings)

    @property
    def name(self) -> str:
        """The name of the run folder.

        Example:
            >>> Cell("atss", "focal+concordance(0.3)", (("optim.lr", 0.01),), 2).name
            'atss-focal+concordance(0.3)-optim.lr=0.01-seed2'
        """
        settings = (f"{name}={_text(value)}" for name, value in self.settings)
        words = [self.detector, self.loss, *settings, f"seed{self.seed}"]
        return re.sub(r"[^\w.+=(),-]", "_", "-".join(words))


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        folder: Folder of the study: ``study.json``, ``config.yaml`` and ``runs/``.
        detectors: Names of detectors.
        losses: Names of losses; the first is the reference that the others are compared with.
        seeds: Seeds of the runs.
        vary: Dotted name of a setting to its values.
        config: Settings of all runs.
        resamples: Number of bootstrap draws of images for the intervals.

    Raises:
        UsageError: a list is empty or repeats a value, ``vary`` names an unknown setting, or runs are not evaluated.

    Example:
        >>> rates = {"optim.lr": (0.01, 0.02)}
        >>> study = Study(Path("study"), ("atss",), ("default", "rank_sort"), seeds=(0, 1, 2), vary=rates)
        >>> len(study.cells())
        12
    """

    folder: Path
    detectors: tuple[str, ...]
    losses: tuple[str, ...]
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    config: TrainConfig = field(default_factory=TrainConfig)
    resamples: int = 400

    def __post_init__(self) -> None:
        for name in ("detectors", "losses", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                listed = ", ".join(map(str, values)) or "none"
                raise UsageError(f"{name} must be one or more different ones, got {listed}")
        if self.resamples < 2:
            raise UsageError(f"resamples must be at least 2, the number of bootstrap draws, got {self.resamples}")
        if not self.config.evaluate:
            raise UsageError("evaluate must be true in a study, which compares evaluations, got false; leave it out")
        known = flat(TrainConfig())
        for name, values in self.vary.items():
            if name not in known and not isinstance(known.get(name.rpartition(".")[0]), dict):
                raise UsageError(f"vary must name settings of a run, got {name}; see concordet train --help")
            if not values or name in NOT_VARIED:
                raise UsageError(f"vary must give values of a setting besides {', '.join(NOT_VARIED)}, got {name}")
            if any(isinstance(value, dict) for value in values):
                raise UsageError(
                    f"vary must give numbers, words or lists, got a mapping for {name}; name a setting in it"
                )
            if any(value in values[:i] for i, value in enumerate(values)):
                raise UsageError(f"vary must give different values, got {name}={','.join(map(_text, values))}")

    def cells(self) -> list[Cell]:
        """All cells; losses alternate within a seed, so that a drift of the machine's speed affects all of them."""
        settings = [tuple(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())]
        return [
            Cell(detector, loss, chosen, seed)
            for seed, detector, chosen, loss in product(self.seeds, self.detectors, settings, self.losses)
        ]

    def run_folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.folder / "runs" / cell.name

    def config_of(self, cell: Cell) -> TrainConfig:
        """The configuration of a cell's run."""
        tree = to_dict(self.config)
        for name, value in (*cell.settings, ("detector", cell.detector), ("loss", cell.loss), ("seed", cell.seed)):
            *sections, last = name.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[last] = list(value) if isinstance(value, tuple) else value
        return from_dict(tree)

    def extended(self, detectors: Sequence[str] = (), losses: Sequence[str] = (), seeds: Sequence[int] = ()) -> Study:
        """This study with more detectors, losses and seeds; those that it has already stay first.

        Example:
            >>> study = Study(Path("study"), ("atss",), ("default", "ap"), seeds=(1, 2))
            >>> study.extended(losses=("ap", "alrp"), seeds=(1, 2, 3)).losses
            ('default', 'ap', 'alrp')
        """
        return replace(
            self,
            detectors=tuple(dict.fromkeys([*self.detectors, *detectors])),
            losses=tuple(dict.fromkeys([*self.losses, *losses])),
            seeds=tuple(sorted({*self.seeds, *seeds})),
        )

    def check_settings(self, **asked: Any) -> None:
        """Raises a UsageError if one of these attributes differs from that of this study, which is saved."""
        for name, value in asked.items():
            own = getattr(self, name)
            if name == "config":
                if to_dict(with_absolute_paths(value)) != to_dict(with_absolute_paths(own)):
                    raise UsageError(
                        f"{self.folder} must be a folder without another study, got one with other settings; leave the "
                        "configuration out to continue it, or name another folder"
                    )
            elif value != own:
                raise UsageError(
                    f"{name} must be {_text(own)}, as in the study in {self.folder}, got {_text(value)}; leave it out "
                    "to continue that study, or name another folder"
                )

    def compared_with(self, reference: str) -> Study:
        """This study with another reference, one of its losses.

        Example:
            >>> Study(Path("study"), ("atss",), ("default", "ap"), seeds=(1, 2)).compared_with("ap").losses
            ('ap', 'default')
        """
        if reference not in self.losses:
            raise UsageError(f"reference must be one of the losses {', '.join(self.losses)}, got {reference}")
        return replace(self, losses=tuple(dict.fromkeys([reference, *self.losses])))

    def save(self) -> None:
        """Writes the definition of the study into its folder.

        Detectors, losses and seeds of a study that is there already are kept.

        Raises:
            UsageError: the folder has a study with other settings.
            ValueError: it has other files than those of a study, such as a run.
        """
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # the jobs of an array start together
        with locked(self.folder, "try again", patience=60):
            whole = self
            if (self.folder / NAME).exists():
                before = load_study(self.folder)
                before.check_settings(config=self.config, vary=self.vary, resamples=self.resamples)
                whole = before.extended(self.detectors, self.losses, self.seeds)
            save_config(self.folder / "config.yaml", with_absolute_paths(self.config))
            content = {k: v for k, v in asdict(whole).items() if k not in ("folder", "config")}
            write_json(self.folder / NAME, {"format": 1, **content})


def check_folder(folder: Path) -> None:
    """Raises a ValueError where a study in this folder would mix with other files.

    Results may be there already, and, with a lock, what a process leaves that has just begun to write the study.
    """
    if not folder.exists() or (folder / NAME).exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    own = r"results|runs|\.lock|\.(config|study)\.\d+\.tmp\.\w+" + (r"|config\.yaml" if ".lock" in names else "")
    if not all(re.fullmatch(own, name) for name in names):
        raise ValueError(f"out must be a new folder or one of a study, got {folder} with other content; name another")


def load_study(folder: str | Path) -> Study:
    """The study of a folder.

    Args:
        folder: Folder of a study.

    Returns:
        The study that was saved there.

    Raises:
        ValueError: the folder has no study.

    Example:
        >>> Study(Path("runs/study"), ("fcos",), ("default", "rank_sort"), seeds=(0, 1)).save()
        >>> load_study("runs/study").losses
        ('default', 'rank_sort')
    """
    folder = Path(folder)
    content = read_json(folder / NAME)
    parts = {"format", "detectors", "losses", "seeds", "vary", "resamples"}
    if not isinstance(content, dict) or content.get("format") != 1 or not parts <= content.keys():
        raise ValueError(f"{folder / NAME} must be written by concordet study, got something else; name another folder")
    return Study(
        folder,
        tuple(content["detectors"]),
        tuple(content["losses"]),
        tuple(content["seeds"]),
        {name: tuple(map(_frozen, values)) for name, values in content["vary"].items()},
        load_config(folder / "config.yaml"),
        content["resamples"],
    )


def parse_vary(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Values by setting from words such as ``optim.lr=0.01,0.02``.

    Example:
        >>> parse_vary(["optim.lr=0.01,0.02", "image_size=[64,96],[128,128]"])
        {'optim.lr': (0.01, 0.02), 'image_size': ((64, 96), (128, 128))}
    """
    import yaml

    vary: dict[str, tuple[Any, ...]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        try:
            listed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            listed = []
        if not equals or not listed:
            raise UsageError(f"vary must be NAME=VALUE,VALUE,..., got {word}; for example optim.lr=0.01,0.02")
        if name in vary:
            raise UsageError(f"vary must name each setting once, got {name} twice; give all its values in one word")
        vary[name] = tuple(map(_frozen, listed))
    return vary


def _frozen(value: Any) -> Any:
    """Lists as tuples, since cells are keys of dicts."""
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    """A setting's value, or several settings with theirs, as on the command line."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={','.join(map(_text, values))}" for name, values in value.items()) or "nothing"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
