"""Did the ranking losses get slower? Times the thesis's grid with another revision's code and with this one's, in turn.

    python -m studies.before_after REVISION            # a commit, tag or branch of this repository

Each revision runs in a process of its own. They take turns run by run, so that a drift of the machine's speed affects
both. A run is a forward and a backward pass, and its time is processor time. Writes studies/results/before_after.csv.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from concordet.benchmark.results import environment, with_quartiles, write_rows
from concordet.benchmark.results import table as markdown_table

RESULTS = Path(__file__).parent / "results" / "before_after.csv"
ROOT = Path(__file__).parents[1]
LOSSES = ("focal", "ap", "alrp", "rank_sort", "ndcg", "bucketed_ap", "bucketed_rank_sort")
LOGITS, SHARES = (10_000, 100_000, 1_000_000), (0.001, 0.01, 0.02, 0.05)

WORKER = """
import sys, time, torch
from torchvision.ops import sigmoid_focal_loss
from concordet.benchmark.losses import Data
from concordet.losses import functional as f
torch.set_num_threads(1)
calls = {
    "focal": lambda d: sigmoid_focal_loss(d.logits, d.targets, reduction="sum"),
    "ap": lambda d: f.ap_loss(d.logits, d.labels, method="exact"),
    "alrp": lambda d: torch.stack(f.alrp_loss(d.logits, d.labels, d.loc_errors)).sum(),
    "rank_sort": lambda d: sum(f.rank_sort_loss(d.logits, d.labels, d.quality, method="exact")),
    "ndcg": lambda d: f.ndcg_loss(d.logits, d.labels),
    "bucketed_ap": lambda d: f.ap_loss(d.logits, d.labels, method="bucketed"),
    "bucketed_rank_sort": lambda d: sum(f.rank_sort_loss(d.logits, d.labels, d.quality, method="bucketed")),
}
made = None
for line in sys.stdin:
    n, share, loss = line.split()
    if made != (n, share):
        made, data = (n, share), Data.make(int(n), float(share))
    start = time.process_time()
    calls[loss](data).backward()
    taken = time.process_time() - start
    data.logits.grad = data.loc_errors.grad = None
    print(taken, flush=True)
"""


class Worker:
    """A process that runs the code of one source tree."""

    def __init__(self, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree,
            env=environment,
        )  # fmt: skip

    def run(self, n: int, share: float, loss: str) -> float:
        """Processor seconds of one forward and backward pass."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{n} {share} {loss}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {loss} at {n} logits; its message is above")
        return float(line)


def cell(workers: list[Worker], n: int, share: float, loss: str, rounds: int) -> dict[str, object]:
    """Milliseconds of both, and the median of the ratio after / before with its quartiles."""
    pairs = [[worker.run(n, share, loss) for worker in workers] for _ in range(rounds + 1)][1:]  # the first warms up
    ratios = [after / before for before, after in pairs]
    low, _, high = quantiles(ratios, n=4)
    return {
        "logits": n,
        "share": share,
        "loss": loss,
        "before_ms": round(1e3 * median(before for before, _ in pairs), 3),
        "after_ms": round(1e3 * median(after for _, after in pairs), 3),
        "ratio": round(median(ratios), 3),
        "q25": round(low, 3),
        "q75": round(high, 3),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: median and quartiles of the ratio, one row per cell of the grid."""
    losses = list(dict.fromkeys(str(r["loss"]) for r in rows))
    lines = []
    for n, share in dict.fromkeys((r["logits"], r["share"]) for r in rows):
        own = {r["loss"]: r for r in rows if (r["logits"], r["share"]) == (n, share)}
        cells = [with_quartiles(own[loss], "ratio", "q25", "q75") for loss in losses]
        lines.append([f"{int(n):,}", f"{float(share):.1%}", *cells])
    return markdown_table(["logits", "positives", *losses], lines, text_columns=0)


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="commit, tag or branch to compare with")
    parser.add_argument("--rounds", type=int, default=15, help="runs with a million logits; more with fewer logits")
    parser.add_argument("--logits", type=int, nargs="+", default=LOGITS, help="numbers of logits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = subprocess.run(["git", "archive", options.revision, "concordet"], cwd=ROOT, capture_output=True)
        if tree.returncode:
            message = tree.stderr.decode().strip()
            raise SystemExit(f"revision must be one of this repository, got {options.revision}: {message}")
        with tarfile.open(fileobj=io.BytesIO(tree.stdout)) as archive:
            archive.extractall(folder, filter="data")
        workers = [Worker(Path(folder)), Worker(ROOT)]
        rows = []
        for n in options.logits:
            for share in SHARES:
                rounds = round(options.rounds * max(1, 1e6 / n) ** 0.5)  # short runs are noisier
                rows += [cell(workers, n, share, loss, rounds) for loss in LOSSES]
                print(table(rows).splitlines()[-1], flush=True)
        for worker in workers:
            worker.process.kill()
    before, after = (revision_name(revision) for revision in (options.revision, "HEAD"))
    rows = [{"before": before, "after": after, **row} for row in rows]
    write_rows(RESULTS, rows, {**environment(), "threads": "1", "clock": "processor"})
    print(table(rows))


def revision_name(revision: str) -> str:
    """Short hash of a revision."""
    result = subprocess.run(["git", "rev-parse", "--short", revision], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip()


if __name__ == "__main__":
    main()
