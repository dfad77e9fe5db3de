"""Did the ranking losses get slower?  The thesis's grid with another revision's code and with this one's, turn by turn.

    python studies/before_after.py REVISION            # a commit, tag or branch of this repository

Both revisions run in processes of their own, one at a time, and take turns run by run, so that a drift of the machine's
speed meets both alike.  A run is forward and backward; its time is the processor's.  Writes
studies/results/before_after.csv and before_after.md.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median, quantiles

from concordet.benchmark.results import write_table

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
known = None
for line in sys.stdin:
    n, share, loss = line.split()
    if known != (n, share):
        known, data = (n, share), Data.make(int(n), float(share))
    start = time.process_time()
    calls[loss](data).backward()
    taken = time.process_time() - start
    data.logits.grad = data.loc_errors.grad = None
    print(taken, flush=True)
"""


class Worker:
    """A process with the code of one tree."""

    def __init__(self, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree,
            env=environment,
        )  # fmt: skip

    def run(self, n: int, share: float, loss: str) -> float:
        """Seconds of the processor for one forward and backward pass."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{n} {share} {loss}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {loss} at {n} logits; its message is above")
        return float(line)


def cell(workers: list[Worker], n: int, share: float, loss: str, rounds: int) -> dict[str, object]:
    """Milliseconds of both, and the median ratio after / before with its quartiles."""
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


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: ratios, a row a cell of the grid."""
    losses = list(dict.fromkeys(str(r["loss"]) for r in rows))
    lines = ["| logits | positives | " + " | ".join(losses) + " |", "|---:|---:" + "|---:" * len(losses) + "|"]
    for n, share in dict.fromkeys((r["logits"], r["share"]) for r in rows):
        own = {r["loss"]: r for r in rows if (r["logits"], r["share"]) == (n, share)}
        cells = [f"{own[x]['ratio']:.2f} ({own[x]['q25']:.2f}–{own[x]['q75']:.2f})" for x in losses]
        lines.append(f"| {n:,} | {share:.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=15, help="of a million logits; more of fewer")
    parser.add_argument("--logits", type=int, nargs="+", default=LOGITS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = subprocess.run(["git", "archive", options.revision, "concordet"], cwd=ROOT, capture_output=True)
        if tree.returncode:
            raise SystemExit(f"{options.revision!r} is no revision of this repository: {tree.stderr.decode().strip()}")
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
    name = subprocess.run(["git", "rev-parse", "--short", options.revision], cwd=ROOT, capture_output=True, text=True)
    now = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    what = (
        f"`python studies/before_after.py {options.revision}`: processor time of forward and backward with "
        f"{now.stdout.strip()} / with {name.stdout.strip()}, median of {options.rounds} runs in turn, of short ones "
        "more (quartiles)"
    )
    write_table(RESULTS, rows, table(rows), what, 1)


if __name__ == "__main__":
    main()
