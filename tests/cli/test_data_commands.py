"""concordet data and concordet convert, on small data sets in several forms."""

import json

import pytest
from PIL import Image

from concordet.cli import main
from concordet.data import detect_format
from concordet.data.convert import write_folder

from ..data.forms import (
    IMAGES,
    csv_column_of_splits,
    save,
    voc_nested,
    voc_one_folder,
    write,
    yolo_parts_inside,
    yolo_roboflow,
)
from ..data.test_detect import expected, objects


def test_data_counts_parts_and_classes(tmp_path, capsys):
    root = yolo_roboflow(tmp_path / "pets").parent
    file, page = tmp_path / "pets.json", tmp_path / "pets.html"
    assert main(["data", str(root), "--json", str(file), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("YOLO (data.yaml): 5 images, 2 classes")
    assert "no faults" in out
    report = json.loads(file.read_text())
    assert report["format"] == "yolo"
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], train["objects"], train["classes"]) == (3, 4, {"cat": 2, "dog": 2})
    assert (val["images"], val["objects"], val["classes"]) == (2, 3, {"cat": 1, "dog": 2})
    assert train["image_sizes"]["median"] == [64, 48]
    # COCO's sizes: below 32 x 32 pixels is small, from 96 x 96 on large; the four have 980, 720, 3072 and 320
    assert train["objects_by_size"] == {"small": 3, "medium": 1, "large": 0}
    html = page.read_text()
    assert html.count("data:image/jpeg") == 5
    assert "a.jpg" in html


def faulty(root):
    """A data set with one fault of each kind."""
    voc_one_folder(root)
    (root / "a.jpg").write_bytes((root / "a.jpg").read_bytes()[:-300])
    (root / "b.jpg").write_bytes(b"no image")
    (root / "c.jpg").unlink()
    text = (root / "d.xml").read_text()
    write(root / "d.xml", text.replace("<xmax>20</xmax>", "<xmax>5</xmax>").replace("<xmax>56<", "<xmax>90<"))
    thing = (root / "e.xml").read_text()
    item = thing[thing.index("<object>") : thing.index("</annotation>")]
    write(root / "e.xml", thing.replace(item, item + item))
    return root


def test_faults_are_listed_with_their_files(tmp_path, capsys):
    root = faulty(tmp_path / "pets")
    assert main(["data", str(root), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    faults = {(fault["file"].rpartition("/")[2], fault["fault"][:24]) for fault in json.loads(out)["faults"]}
    assert faults == {
        ("a.jpg", "the image cannot be deco"),
        ("b.jpg", "the image cannot be deco"),
        ("c.jpg", "the image file is missin"),
        ("d.jpg", "a box without width or h"),
        ("d.jpg", "a box that reaches beyon"),
        ("e.jpg", "1 object with the box an"),
    }
    assert "6 faults" in err


def test_images_in_two_parts_are_a_fault(tmp_path, capsys):
    root = voc_nested(tmp_path) / "pets"
    train, val = root / "Training", root / "Validation"
    (val / "Images" / "f.png").write_bytes((train / "Images" / "a.png").read_bytes())
    write(val / "Annotations" / "f.xml", (train / "Annotations" / "a.xml").read_text().replace(">cat<", ">fox<"))
    assert main(["data", str(root), "--json", "-"]) == 0
    faults = [fault["fault"] for fault in json.loads(capsys.readouterr().out)["faults"]]
    assert f"the same image as {train / 'Images' / 'a.png'} of train" in faults
    assert "no object of the class fox, which val has" in faults


@pytest.mark.parametrize("form", [yolo_parts_inside, voc_nested, csv_column_of_splits])
def test_a_converted_folder_holds_the_same(form, tmp_path, capsys):
    path = form(tmp_path / "pets")
    out = tmp_path / "coco"
    assert main(["convert", str(path), "--out", str(out)]) == 0
    source = detect_format(out)
    assert source.sentence() == "COCO: 5 images, 2 classes"
    together = {}
    for split in ("train", "val"):
        together |= objects(source.open(split))
        assert objects(source.open(split)) == objects(detect_format(path).open(split))
    assert together == expected(IMAGES)
    assert main(["convert", str(path), "--out", str(out)]) == 1
    assert "already exists; name another --out" in capsys.readouterr().err


def test_a_converted_file_finds_the_images(tmp_path, capsys):
    root = voc_nested(tmp_path / "pets")
    out = root / "all.json"
    assert main(["convert", str(root), "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["images"]) == 5
    assert detect_format(out).open_all()["all"].class_names == ["cat", "dog"]
    assert objects(detect_format(out).open_all()["all"]) == expected(IMAGES)
    assert main(["convert", str(root / "pets" / "Training"), "--out", "-"]) == 0
    names = [image["file_name"] for image in json.loads(capsys.readouterr().out.splitlines()[-1])["images"]]
    assert names == ["Images/a.png", "Images/b.png", "Images/c.png"]


def test_polygons_and_merged_classes_are_converted(tmp_path):
    out = tmp_path / "out.json"
    words = ["--masks", "--classes", '{"cat": "pet", "dog": "pet"}', "--split", "val", "--out", str(out)]
    assert main(["convert", str(yolo_parts_inside(tmp_path / "pets")), *words]) == 0
    content = json.loads(out.read_text())
    assert content["categories"] == [{"id": 1, "name": "pet"}]
    assert len(content["annotations"]) == 3
    assert all(len(annotation["segmentation"][0]) == 8 for annotation in content["annotations"])


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["data"], 2, "path"),
        (
            ["data", "nothing"],
            1,
            "path must be a folder or an annotation file, got nothing, which does not exist; correct it",
        ),
        (["data", "photos", "--name", "vok"], 2, "name must be one of cityscapes, coco"),
        (["data", "photos", "--pictures", "-1"], 2, "pictures must be at least 0, got -1"),
        (["data", "photos", "--classes", '["cow"]'], 2, "photos: classes must be among cat, dog, got cow"),
        (["convert", "photos"], 2, "out must be a JSON file or a new folder, got none"),
        (["convert", "photos", "--split", "dev", "--out", "x"], 2, "the split must be one of train, val, got dev"),
    ],
)
def test_mistakes(words, status, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    voc_one_folder(tmp_path / "photos")
    assert main(words) == status
    err = capsys.readouterr().err
    assert sentence in err
    assert "unexpected" not in err


def test_the_contact_sheet_has_as_many_pictures_as_asked_for(tmp_path):
    root = voc_one_folder(tmp_path / "pets")
    save(root, "f")
    write(root / "f.xml", (root / "a.xml").read_text().replace("a.jpg", "f.jpg"))
    for number in (0, 3):
        page = tmp_path / f"{number}.html"
        assert main(["data", str(root), "--html", str(page), "--pictures", str(number)]) == 0
        assert page.read_text().count("data:image/jpeg") == number


def test_pictures_show_the_boxes(tmp_path):
    from concordet.cli.commands.data import _photographs

    splits = detect_format(voc_one_folder(tmp_path)).open_all()
    photographs = list(_photographs(splits, 5))
    assert [photograph.name for photograph in photographs] == [f"{name}.jpg" for name in IMAGES]
    assert photographs[2].boxes.tolist() == [[2, 4, 18, 24]]
    assert isinstance(photographs[2].image, Image.Image)


def colored(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path)


def test_no_image_is_replaced_by_another_of_the_same_name(tmp_path):
    colors = {"x/a-2.png": (255, 0, 0), "x/a.png": (0, 255, 0), "y/a.png": (0, 0, 255), "y/A.png": (9, 9, 9)}
    for name, color in colors.items():
        colored(tmp_path / "pets" / name, color)
    lines = [f"{name},cat,1,1,20,20" for name in colors]
    write(tmp_path / "pets" / "boxes.csv", "\n".join(["image,class,x1,y1,x2,y2", *lines]))
    write_folder({"train": detect_format(tmp_path / "pets").open_all()["all"]}, tmp_path / "coco")
    images = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())["images"]
    names = [image["file_name"] for image in images]
    assert len({name.casefold() for name in names}) == 4
    assert {Image.open(tmp_path / "coco" / "train" / name).getpixel((0, 0)) for name in names} == set(colors.values())


def test_held_out_images_do_not_depend_on_how_the_folder_is_named(tmp_path, monkeypatch):
    lines = ["image,class,x1,y1,x2,y2"]
    for scene in range(4):
        colored(tmp_path / f"scene{scene}" / "rgb.png", (scene, 0, 0))
        lines.append(f"scene{scene}/rgb.png,cat,1,1,20,20")
    write(tmp_path / "boxes.csv", "\n".join(lines))
    monkeypatch.chdir(tmp_path)
    parts = [
        [
            str(source.open(split).image_path(i).resolve())
            for split in ("train", "val")
            for i in range(len(source.open(split)))
        ]
        for source in map(detect_format, (tmp_path, ".", "boxes.csv", f"../{tmp_path.name}"))
    ]
    assert len(parts[0]) == 4
    assert all(part == parts[0] for part in parts)


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    root = voc_nested(tmp_path / "pets")
    for path in root.rglob("*.xml"):
        path.write_text(path.read_text().replace(">cat<", ">cat [small]<").replace(">dog<", ">[/]<"))
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "cat [small]" in out
    assert "[/]" in out
