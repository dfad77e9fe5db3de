"""Image and annotation files: listing of folders, look-up by name, and the check that they are inside the data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from concordet import files
from concordet.data.records import Record
from concordet.data.splits import split_of
from concordet.images import SUFFIXES
from concordet.paths import is_inside, require_file, require_inside

MAX_DEPTH: Final = 6
"""Number of levels below a data set's folder that are searched."""


@dataclass
class Listing:
    """All files below a folder except hidden ones, by folder and sorted by name.

    Attributes:
        root: The folder, or the folder of a file that the user named.
        files: Paths of the files below ``root``.
        named: Whether the user named a single file, not the folder.
        skipped: Links to folders outside, which were not followed.
    """

    root: Path
    files: list[Path]
    named: bool = False
    skipped: list[Path] = field(default_factory=list)
    _images: dict[str, list[Path]] | None = field(default=None, repr=False)
    _by_suffix: dict[str, list[tuple[int, Path]]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, root: Path, allow_outside: bool = False) -> Listing:
        """Lists a folder; links to folders are followed only where they stay inside it, or with ``allow_outside``."""
        files: list[Path] = []
        skipped: list[Path] = []
        real_root = os.path.realpath(root)
        for folder, folders, names in os.walk(root, followlinks=True):
            depth = len(Path(folder).relative_to(root).parts)
            visible = sorted(name for name in folders if not name.startswith((".", "__")) and depth < MAX_DEPTH)
            folders[:] = [name for name in visible if _is_safe_folder(folder, name, real_root, allow_outside)]
            skipped += [Path(folder, name) for name in visible if name not in folders]
            files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        return cls(root, files, skipped=skipped)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Files with one of these suffixes, in lower or upper case."""
        if self._by_suffix is None:
            self._by_suffix = {}
            for index, path in enumerate(self.files):
                suffix = os.path.splitext(path.name)[1].lower()
                self._by_suffix.setdefault(suffix, []).append((index, path))
        found = [pair for suffix in suffixes for pair in self._by_suffix.get(suffix, ())]
        return [path for _, path in sorted(found, key=lambda pair: pair[0])]

    def images(self) -> dict[str, list[Path]]:
        """Image files by name and by stem, both in lower case."""
        if self._images is None:
            self._images = {}
            for path in self.with_suffix(*SUFFIXES):
                name = path.name.lower()
                self._images.setdefault(name, []).append(path)
                self._images.setdefault(os.path.splitext(name)[0], []).append(path)
        return self._images

    def find_image(self, name: str, near: Path, part: str | None = None) -> Path | None:
        """The image file that an annotation file in the folder ``near`` calls ``name``, or None.

        It is the file of that name (or, for a name without suffix, of that stem) anywhere below the root. Of several,
        files in the folders that ``name`` contains come first, then those of the same split, then those closest to
        ``near``.

        Raises:
            ValueError: Several files match equally well.
        """
        base = name.replace("\\", "/").rpartition("/")[2].lower()
        if len(self.images().get(base, ())) == 1:
            return self.images()[base][0]
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts:
            return None
        candidates = self.images().get(parts[-1].lower(), [])
        if not candidates and "." in parts[-1]:  # exports may name a .png file with .jpg
            candidates = self.images().get(PurePosixPath(parts[-1]).stem.lower(), [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def closeness(path: Path) -> tuple[int, int, int, int]:
            return (
                _common(reversed(path.parts), reversed(parts)),
                int(path.name == parts[-1]),
                int(part is not None and split_of(path.relative_to(self.root)) == part),
                _common(path.parts, near.parts),
            )

        best = max(map(closeness, candidates))
        chosen = [path for path in candidates if closeness(path) == best]
        if len(chosen) > 1:
            raise ValueError(
                f"{near}: image {name!r} may be {chosen[0]} or {chosen[1]}; name the folder of the images, or give the "
                "files different names"
            )
        return chosen[0]


def _common(a: Iterable[str], b: Iterable[str]) -> int:
    number = 0
    for one, other in zip(a, b, strict=False):
        if one.lower() != other.lower():
            break
        number += 1
    return number


def _is_safe_folder(folder: str, name: str, root: str, allow_outside: bool) -> bool:
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return True
    target = os.path.realpath(path)
    # a link to a folder above itself would never end
    loops = is_inside(os.path.realpath(folder), target) or is_inside(root, target)
    return not loops and (allow_outside or is_inside(target, root))


def read_text(path: Path, what: str) -> str:
    """Text of a file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError, ValueError: It is missing, not a regular file, or not text.
    """
    return files.read_text(require_file(path, what))


def image_faults(records: Sequence[Record], folders: Sequence[Path], source: Path) -> dict[int, Exception]:
    """Errors by index for image files that are missing, not regular files, or outside ``folders``.

    Each folder is listed once, which is faster than a check of every file. Empty ``folders`` allow any path.
    """
    roots = [os.path.realpath(folder) for folder in folders]
    listings: dict[str, tuple[bool, dict[str, bool]]] = {}
    faults: dict[int, Exception] = {}
    for index, record in enumerate(records):
        folder, _, name = str(record.path).rpartition(os.sep)
        if folder not in listings:
            listings[folder] = _list_folder(folder or ".", roots)
        inside, entries = listings[folder]
        plain = entries.get(name)
        if plain is None:
            faults[index] = FileNotFoundError(
                f"{record.path}: the image file is missing; restore it or remove its annotations"
            )
        if plain and inside:
            continue
        where = f"{source}: image {record.image_id}"
        try:
            if roots:
                require_inside(record.path, folders, where)
            if plain is not None:
                require_file(record.path, "the image file", "replace it or remove its annotations")
        except (ValueError, FileNotFoundError) as error:
            faults[index] = error
    return faults


def _list_folder(folder: str, roots: Sequence[str]) -> tuple[bool, dict[str, bool]]:
    """Whether a folder is inside the roots, and whether each of its entries is a regular file and not a link."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    except (OSError, ValueError):
        found = {}
    try:
        real = os.path.realpath(folder)
    except (OSError, ValueError):
        return False, found
    return not roots or any(is_inside(real, root) for root in roots), found
