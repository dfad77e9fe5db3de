"""Files of the authors' repositories, read from clones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ADDRESSES = {
    "RankSortLoss": "https://github.com/kemaloksuz/RankSortLoss",
    "BucketedRankingBasedLosses": "https://github.com/blisgard/BucketedRankingBasedLosses",
    "CorrLoss": "https://github.com/fehmikahraman/CorrLoss",
    "fast-soft-sort": "https://github.com/google-research/fast-soft-sort",
}
FOLDER = Path(".oracles")
"""Where clones lie; `ORACLES_CLONES` names a folder with bare clones `...NAME/repo` to read instead."""


def source(name: str, path: str) -> str | None:
    """The text of a repository's file; None, with a line on the screen, where there is no network and no clone."""
    given = os.environ.get("ORACLES_CLONES")
    folders = [p / "repo" for p in Path(given).iterdir() if p.name.endswith(name)] if given else []
    clone = folders[0] if folders and folders[0].exists() else FOLDER / f"{name}.git"
    if not clone.exists():
        FOLDER.mkdir(exist_ok=True)
        command = ["git", "clone", "--quiet", "--bare", "--depth", "1", ADDRESSES[name], str(clone)]
        subprocess.run(command, capture_output=True, check=False)
    shown = subprocess.run(
        ["git", f"--git-dir={clone}", "show", f"HEAD:{path}"], capture_output=True, text=True, check=False
    )
    if not shown.stdout:
        print(f"skipped: {name} cannot be cloned; a network or ORACLES_CLONES is needed")
    return shown.stdout or None
