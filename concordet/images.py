"""Image files of any mode as 8-bit RGB, and their headers.

Modes are converted as by Pillow's ``convert("RGB")``, and so by torchvision's data sets (alpha is dropped, palettes are
looked up, CMYK is converted), except 16-bit grayscale, which ``convert`` would clip at 255: its high byte is taken.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from concordet.paths import require_file

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

LONGEST_ASPECT: Final = 100
"""Largest aspect ratio of an image: resized for a detector, the shorter side of a longer one would vanish."""

_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image without decoding it.

    Attributes:
        width, height: Pixels as stored.
        mode: Pillow's mode.
        orientation: EXIF orientation 1..8, 1 where there is none.
    """

    width: int
    height: int
    mode: str
    orientation: int

    def counts_as(self) -> list[str]:
        """Names of the counts in a data set's summary that this image adds to."""
        names = {
            "grayscale_images": ("1", "L", "LA", *_WIDE),
            "16-bit_images": _WIDE,
            "cmyk_images": ("CMYK", "YCCK"),
            "palette_images": ("P", "PA"),
            "images_with_alpha": ("RGBA", "LA", "PA", "RGBa", "La"),
        }
        return [name for name, modes in names.items() if self.mode in modes]

    def is_quarter_turned(self) -> bool:
        """Whether turning the image upright swaps its width and height."""
        return self.orientation in _QUARTER_TURNS

    def turned(self, size: tuple[int, int] | None) -> bool:
        """Whether annotations made for an image of ``size`` (width, height) refer to the image turned upright.

        The annotations' size decides: it equals the stored size or, for an image to be turned by a quarter, the
        turned size. Where it cannot decide (no size, a square, a half turn, a mirror image), they refer to the stored
        pixels, as in COCO and in torchvision's data sets.
        """
        if not self.is_quarter_turned() or size is None:
            return False
        return size == (self.height, self.width) and size != (self.width, self.height)


def read_header(path: Path) -> Header:
    """Reads a header, without the pixels.

    Raises:
        FileNotFoundError, ValueError: The file is missing, not an image, or an image that :func:`read_rgb` refuses.
    """
    with _opened(path) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        return Header(image.width, image.height, image.mode, orientation)


def read_rgb(path: Path, *, turn: bool = False, max_size: int | None = None) -> Image.Image:
    """Decodes an image as 8-bit RGB.

    Args:
        path: Image file.
        turn: Whether to turn it upright by its EXIF orientation.
        max_size: Longest side of the result, in pixels; larger images are shrunk (JPEG files already in decoding).

    Raises:
        FileNotFoundError, ValueError: The file is missing, truncated, or not an image.
    """
    with _opened(path) as image:
        size = _fitting(image.size, max_size)
        if size != image.size:
            image.draft("RGB" if image.mode == "RGB" else None, size)
        decoded = ImageOps.exif_transpose(image) if turn else image
        rgb = _to_rgb(decoded)
        size = size[::-1] if turn and image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS else size
        return rgb.resize(size, Image.Resampling.BILINEAR) if rgb.size != size else rgb


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open image; every error of Pillow becomes one sentence."""
    require_file(path, "the image file", "restore it or remove its annotations")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            # broken metadata does not matter, and an image above Pillow's limit of pixels is an error in any case
            if max(image.size) > LONGEST_ASPECT * min(image.size):
                raise ValueError(
                    f"its sides are {image.width} and {image.height} pixels, more than {LONGEST_ASPECT} to 1"
                )
            if image.mode == "F":
                raise ValueError("its pixels are floating point numbers, whose range is not known")
            yield image
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = "no image format is recognized" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(
            f"{path}: the image cannot be decoded ({reason}); replace the file or remove it from the data set"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE:
        values = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    image.load()  # convert() of an RGB image would leave the file unread
    return image.convert("RGB")


def _fitting(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    longest = max(size)
    if max_size is None or longest <= max_size:
        return size
    return max(round(size[0] * max_size / longest), 1), max(round(size[1] * max_size / longest), 1)
