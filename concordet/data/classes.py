"""Selecting, renaming and merging of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from concordet.data.records import Annotations
from concordet.errors import UsageError

Classes = Sequence[str] | Mapping[str, str | None]
"""Names to keep in the order of their labels, or new names (None to leave a class out) by name."""


def select_classes(annotations: Annotations, classes: Classes | None) -> Annotations:
    """The annotations with some classes left out, renamed or merged.

    Args:
        annotations: Images and annotations from a reader.
        classes: A list keeps these classes, in this order, and leaves the others out; an entry ``"pet=cat+dog"`` merges
            classes under a new name. A mapping gives classes new names: classes with the same new name are merged,
            classes mapped to None are left out, and classes without an entry stay as they are. A merged class has the
            category id of its first member. None keeps all.

    Raises:
        ValueError: ``classes`` names an unknown class, or no class is left.

    Example:
        >>> from pathlib import Path
        >>> cells = Annotations([], ["Platelets", "RBC", "WBC"], Path("cells.json"))
        >>> select_classes(cells, {"RBC": "cell", "WBC": "cell", "Platelets": None}).class_names
        ['cell']
        >>> select_classes(cells, ["WBC", "other=RBC+Platelets"]).class_names
        ['WBC', 'other']
    """
    if classes is None:
        return annotations
    names = annotations.class_names
    new_names = _new_names(annotations, classes)
    kept = list(dict.fromkeys(name for name in new_names.values() if name is not None))
    if not kept:
        raise UsageError(
            f"{annotations.source}: classes must keep a class, got {classes!r}; keep one of {_list(names)}"
        )
    if isinstance(classes, Mapping):  # in the order of the original classes
        kept = list(dict.fromkeys(name for key in names if (name := new_names.get(key)) is not None))
    ids = annotations.category_ids or list(range(1, len(names) + 1))
    first = {new: ids[names.index(old)] for old, new in reversed(new_names.items()) if new and old in names}
    spare = iter(range(max(ids, default=0) + 1, max(ids, default=0) + 1 + len(kept)))
    labels = {name: label for label, name in enumerate(kept, start=1)}
    table = np.array([0] + [labels.get(new_names.get(name) or "", 0) for name in names], np.int64)
    counts = Counter(annotations.counts)
    records = []
    for record in annotations.records:
        new_labels = table[record.labels]
        keep = new_labels > 0
        counts["objects_of_other_classes_left_out"] += int((~keep).sum())
        relabeled = replace(record, labels=new_labels)
        records.append(relabeled if keep.all() else relabeled.only(keep))
    category_ids = [first[name] if name in first else next(spare) for name in kept]
    return replace(annotations, records=records, class_names=kept, category_ids=category_ids, counts=counts)


def _new_names(annotations: Annotations, classes: Classes) -> dict[str, str | None]:
    """New name, or None, by old name; in the order of a list."""
    names, source = annotations.class_names, annotations.source
    if isinstance(classes, str) or not isinstance(classes, Sequence | Mapping):
        raise UsageError(
            f"classes must be a list of names or a mapping of names, got {classes!r}; such as ['cat'] or "
            "{'tabby': 'cat', 'dog': None}"
        )
    wrong = [
        name
        for name in (*classes, *(classes.values() if isinstance(classes, Mapping) else ()))
        if name is not None and (not isinstance(name, str) or not name)
    ]
    if wrong or None in classes:
        raise UsageError(f"classes must be names, got {[*wrong, None][0]!r}; put numbers that are names in quotes")
    if not isinstance(classes, Mapping) and len(set(classes)) < len(classes):
        raise UsageError(f"classes must be different names, got {list(classes)}; name each once")
    pairs = list(classes.items()) if isinstance(classes, Mapping) else _merged(classes, names)
    old_names = [name for name, _ in pairs]
    if len(set(old_names)) < len(old_names):
        raise UsageError(f"classes must have each class once, got {_list(list(classes))}; leave one of the two out")
    unknown = [name for name in old_names if name not in names]
    if unknown and names and (annotations.closed or len(unknown) == len(old_names)):
        raise UsageError(f"{source}: classes must be among {_list(names)}, got {_list(unknown)}; correct the names")
    if isinstance(classes, Mapping):
        return {name: classes.get(name, name) for name in names}
    return dict(pairs)


def _merged(classes: Sequence[str], names: Sequence[str]) -> list[tuple[str, str | None]]:
    """(old, new) name of each class in a list, in which ``new=old+old`` merges."""
    pairs: list[tuple[str, str | None]] = []
    for entry in classes:
        new, equals, old = entry.partition("=")
        if entry in names or not equals:
            pairs.append((entry, entry))
        else:
            pairs += [(name.strip(), new.strip()) for name in old.split("+")]
    return pairs


def _list(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
