"""Structured mutations of JSON, YAML, text, binary files and checkpoints, drawn from a seed."""

import copy
import json
import re

VALUES = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, -(10**30)),
    *(0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "1e400", "nan", "../../etc/passwd", "/etc/passwd", "a\0b", "ü" * 300, "a.jpg", "<b>&"),
    *([], [1], [[1]], [None], {}, {"a": 1}, [1, 2, 3, 4], [1, 2, 3, 1e308], [[[]]]),
]
"""What stands in place of a value of JSON."""

TEXTS = [
    *("", " ", "-1", "0", "1e400", "inf", "-inf", "nan", "0x10", "1,5", "٣", "a", "\x00", "ü", "9" * 5000, "..", "/"),
    *("../../etc/passwd", "<!--", "&amp;", "]]>", "%s", "{}", "\ufeff", "\r", "1 2 3", '"', "&a *a", "- !!python/none"),
    "b" * 140_000,
]
"""What stands in place of a word of a text file."""


def mutate_tree(content, draw):
    """Nested lists and dicts with one to three values replaced, removed, repeated or moved; ``content`` stays."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        containers = list(walk(content))
        if not containers:
            return draw.choice(VALUES)
        container, key = draw.choice(containers)
        action = draw.choice(["replace"] * 6 + ["remove", "repeat", "deep", "swap"])
        if action == "replace":
            container[key] = copy.deepcopy(draw.choice(VALUES))
        elif action == "remove":
            del container[key]
        elif action == "repeat" and isinstance(container, list):
            container.append(container[key])
        elif action == "deep":
            container[key] = [[[[container[key]]]]]
        else:
            other, place = draw.choice(containers)
            container[key] = other[place] if not contains(other[place], container) else None
    return content


def mutate_json(text, draw):
    """A JSON text with changed values."""
    return json.dumps(mutate_tree(json.loads(text), draw))


def walk(content):
    """Every place in nested lists and dicts, as (container, key)."""
    if isinstance(content, list | dict):
        for key in range(len(content)) if isinstance(content, list) else list(content):
            yield content, key
            yield from walk(content[key])


def contains(content, container):
    return content is container or any(inner is container for inner, _ in walk(content))


def mutate_text(text, draw):
    """A text with one to three words replaced, removed or repeated, or lines lost."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        words = list(re.finditer(r"[^\s<>,;=\"]+", text))
        if not words:
            return text + draw.choice(TEXTS)
        word = draw.choice(words)
        action = draw.choice(["replace"] * 6 + ["remove", "repeat", "cut"])
        if action == "cut":
            text = text[: draw.randrange(len(text))]
        else:
            new = {"replace": draw.choice(TEXTS), "remove": "", "repeat": f"{word[0]} {word[0]}"}[action]
            text = text[: word.start()] + new + text[word.end() :]
    return text


def mutate_bytes(content, draw):
    """Bytes of a file with some changed, or cut."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 4, 64])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(1, len(changed))] if draw.random() < 0.3 else changed)


def mutate_file(path, draw):
    """Changes a file in place: as JSON where it is JSON, else as text or as bytes."""
    kinds = {".json": ["json"] * 10 + ["text", "bytes"], ".png": ["bytes"], ".npz": ["bytes"]}
    kind = draw.choice(kinds.get(path.suffix, ["text"] * 4 + ["bytes"]))
    if kind == "json":
        path.write_text(mutate_json(path.read_text(), draw))
    elif kind == "text":
        path.write_bytes(mutate_text(path.read_text(), draw).encode())
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
