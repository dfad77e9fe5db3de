"""The table of versions that concordet was checked with, from what the sessions of ``noxfile.py`` recorded.

nox -s lowest              # records a row in studies/results/environments.csv
python -m studies.pages    # makes the table in docs/compatibility.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from concordet.benchmark.results import table as markdown_table

COLUMNS = {
    "session": "session",
    "tests": "result",
    "python": "Python",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "lightning": "Lightning",
    "jsonargparse": "jsonargparse",
    "pillow": "Pillow",
    "hotcoco": "hotcoco",
    "date": "date",
}
"""Column of the results file and its heading."""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """One row per session; a dash stands for a package that the session does not install.

    Example:
        >>> print(table([{"session": "lowest", "tests": "9 passed, 0 failed", "torch": "2.6.0"}]).splitlines()[2][:35])
        | lowest | 9 passed, 0 failed | – |
    """
    lines = [[row.get(column) or "–" for column in COLUMNS] for row in rows]
    return markdown_table(list(COLUMNS.values()), lines, text_columns=len(COLUMNS))
