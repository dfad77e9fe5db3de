"""Reading and writing of the frames of video files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from concordet.errors import missing_package
from concordet.files import replacing

SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
"""Suffixes of video files, in lower case."""


@dataclass(frozen=True)
class Video:
    """The header of a video file.

    Attributes:
        path: File.
        frames: Number of frames; 0 if the header has none.
        rate: Frames per second.
        size: (width, height) in pixels.
    """

    path: Path
    frames: int
    rate: float
    size: tuple[int, int]


def is_video(path: str | Path) -> bool:
    """Whether a file is a video by its name.

    Example:
        >>> is_video("street.MP4"), is_video("street.jpg")
        (True, False)
    """
    return Path(path).suffix.lower() in SUFFIXES


def _opencv() -> Any:
    try:
        return import_module("cv2")
    except ImportError as error:
        raise ValueError(missing_package("reading video files", "opencv-python-headless", "video")) from error


def read_video(path: Path) -> Video:
    """The header of a video file.

    Raises:
        ValueError: OpenCV is not installed, or cannot read the file.
    """
    with _reader(path) as (cv2, capture):
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        frames = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        return Video(path, frames, rate if rate > 0 else 25.0, size)


def read_frames(path: Path, *, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Number (from 0) and picture of every ``every``-th frame.

    Raises:
        ValueError: as :func:`read_video`, or there is no frame.
    """
    number = 0
    with _reader(path) as (cv2, capture):
        while capture.grab():
            if number % every == 0:
                good, frame = capture.retrieve()
                if good:
                    yield number, Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            number += 1
    if number == 0:
        raise ValueError(f"{path}: the video cannot be decoded (it has no frame); replace the file")


@contextmanager
def _reader(path: Path) -> Iterator[tuple[Any, Any]]:
    cv2 = _opencv()
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path}: the video cannot be decoded (no format is recognized); replace the file")
        yield cv2, capture
    finally:
        capture.release()


@contextmanager
def written_frames(path: Path, *, rate: float, size: tuple[int, int]) -> Iterator[Callable[[Image.Image], None]]:
    """A function that appends a picture to a new MP4 file, which is put in place when the block succeeds.

    Args:
        path: File to write.
        rate: Frames per second.
        size: (width, height) of all pictures.

    Raises:
        ValueError: OpenCV cannot write such a file.
    """
    cv2 = _opencv()
    with replacing(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        if not writer.isOpened():
            raise ValueError(
                f"{path} must be a video that OpenCV can write, got {size[0]} x {size[1]} pixels; leave out --draw"
            )
        try:
            yield lambda image: writer.write(np.asarray(image.convert("RGB"))[:, :, ::-1].copy())
        finally:
            writer.release()
