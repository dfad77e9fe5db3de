"""Self-contained HTML pages: style, script, pictures and plots are all part of the file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from concordet.files import write_text
from concordet.version import __version__

FOLDER: Final = Path(__file__).parent / "templates"

PICTURE_SIDE: Final = 440
"""Longest side of a picture in pixels: sharp at its size on the page, small enough for dozens on a page."""


def render(template: str, **context: Any) -> str:
    """Renders one of this folder's templates; ``style``, ``script`` and ``version`` are added to its context."""
    return _environment().get_template(template).render(
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "sort.js").read_text(encoding="utf-8")),
        version=__version__,
        **context,
    )  # fmt: skip


def write_page(text: str, out: Path) -> Path:
    """Writes a page atomically, and creates its folder if needed.

    Raises:
        ValueError: the file cannot be written there.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(
            f"page must be an HTML file, got the folder {out}; name a file, for example {out / 'comparison.html'}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return write_text(out, text)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}); name a file in a folder you may write to"
        ) from error


def fit(image: Image.Image, *, side: int = PICTURE_SIDE) -> tuple[Image.Image, float]:
    """The image with its longest side ``side``, and the factor it was resized by.

    Small images are enlarged before anything is drawn on them, so that lines and letters stay sharp.
    """
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), factor


def data_uri(image: Image.Image) -> str:
    """The image as a ``data:`` URL of a JPEG."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def breakable(text: str) -> Markup:
    """The text with optional line breaks after ``+ _ . /`` and before parentheses, as names of losses are long.

    Example:
        >>> str(breakable("focal+concordance(0.3)"))
        'focal+<wbr>concordance<wbr>(0.3)'
    """
    safe = re.sub(r"([+_/]|\.(?=\D))", r"\1<wbr>", str(escape(text)))
    return Markup(safe.replace("(", "<wbr>("))


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment
