"""Image files of every kind as 8-bit RGB."""

import numpy as np
import pytest
from PIL import Image

from concordet.data import CocoFolder
from concordet.images import Header, read_header, read_rgb

GRAY = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "mode", "counts"),
    [
        ("gray.png", "L", ["grayscale_images"]),
        ("bits.png", "1", ["grayscale_images"]),
        ("cmyk.jpg", "CMYK", ["cmyk_images"]),
        ("palette.png", "P", ["palette_images"]),
        ("alpha.png", "RGBA", ["images_with_alpha"]),
        ("gray_alpha.png", "LA", ["grayscale_images", "images_with_alpha"]),
        ("plain.jpg", "RGB", []),
        ("anim.gif", "RGB", ["palette_images"]),
    ],
)
def test_modes_are_counted_and_read_as_rgb(tmp_path, picture, name, mode, counts):
    path = tmp_path / name
    picture(64, 48).convert(mode).save(path)
    assert read_header(path).counts_as() == counts
    image = read_rgb(path)
    assert image.mode == "RGB"
    assert image.size == (64, 48)
    with Image.open(path) as published:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(published.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_high_byte(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    deep = GRAY.astype(np.uint16) * 257
    Image.fromarray(deep).save(path)
    assert read_header(path).counts_as() == ["grayscale_images", "16-bit_images"]
    np.testing.assert_array_equal(np.asarray(read_rgb(path))[..., 1], GRAY)


def test_floating_point_pixels_are_refused(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(GRAY.astype(np.float32)).save(path)
    with pytest.raises(ValueError, match=r"float\.tif: .*floating point"):
        read_rgb(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_size", [None, 40])
def test_exif_orientation_follows_the_annotated_size(tmp_path, picture, orientation, max_size):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(96, 64).save(path, exif=exif, quality=95)
    header = read_header(path)
    quarter = orientation >= 5
    assert header.turned((64, 96)) == quarter
    assert not header.turned((96, 64))
    assert not header.turned(None)
    stored, upright = read_rgb(path, max_size=max_size), read_rgb(path, turn=True, max_size=max_size)
    assert stored.size == ((96, 64) if max_size is None else (40, 27))
    assert upright.size == (stored.size[::-1] if quarter else stored.size)
    steps = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 3),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    expected = steps[orientation](np.asarray(stored)).astype(int)
    assert abs(np.asarray(upright) - expected).mean() < 2


def test_a_square_is_not_turned():
    assert not Header(50, 50, "RGB", 6).turned((50, 50))


def test_turned_images_in_a_data_set(coco, picture):
    root = coco([])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("up.jpg", "lying.jpg"):
        picture(64, 48).save(root / "tiny" / name, exif=exif)
    images = [
        {"id": 1, "file_name": "up.jpg", "width": 48, "height": 64},
        {"id": 2, "file_name": "lying.jpg", "width": 64, "height": 48},
    ]
    box = {"category_id": 7, "bbox": [0, 50, 10, 10], "area": 100}
    root = coco([{"id": 1, "image_id": 1, **box}], images)
    dataset = CocoFolder(root, "tiny")
    assert dataset[0][0].shape == (3, 64, 48)
    assert dataset[1][0].shape == (3, 48, 64)
    assert dataset.load_image(0).size == (48, 64)
    assert dataset[0][1]["boxes"].tolist() == [[0, 50, 10, 60]]
    summary = dataset.summary()
    assert summary["images_turned_by_exif"] == 1
    assert summary["exif_orientations_not_applied"] == 1
    assert "sizes_other_than_annotated" not in summary


def test_reduced_jpeg_is_close_to_a_full_decode(tmp_path, picture):
    path = tmp_path / "large.jpg"
    picture(640, 480).save(path, quality=95)
    reduced, full = read_rgb(path, max_size=160), read_rgb(path).resize((160, 120), Image.Resampling.BOX)
    assert reduced.size == (160, 120)
    assert abs(np.asarray(reduced).astype(int) - np.asarray(full)).mean() < 2


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_png(tmp_path, picture, keep):
    path = tmp_path / "cut.png"
    picture(64, 48).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"cut\.png: the image cannot be decoded"):
        read_rgb(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.jpg: the image file is missing"):
        read_rgb(tmp_path / "no.jpg")
    with pytest.raises(ValueError, match="the image file must be a file, got a folder"):
        read_header(tmp_path)
