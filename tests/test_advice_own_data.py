"""The fixes of messages about one's own images and tables, which `datarax-tfds convert` reads."""

import numpy as np
from advice import Row
from PIL import Image

from datarax_tfds.files.own_images import ImageFolder, image_shapes
from datarax_tfds.files.own_table import Table


def image(path, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3), dtype)).save(path)
    return path


def folder(*images):
    def call(u):
        for name in images:
            image(u.tmp / "images" / name)
        return ImageFolder.find(u.tmp / "images")

    return call


def moved(u, *names):
    for old, new in zip(["1.png", "cat/2.png"], names, strict=True):
        path = u.tmp / "images" / new
        path.parent.mkdir(parents=True, exist_ok=True)
        (u.tmp / "images" / old).rename(path)
    assert ImageFolder.find(u.tmp / "images").labels == ["cat", "dog"]


def folder_of_splits(u):
    for name in ("train/dog/1.png", "test/cat/2.png"):
        image(u.tmp / "splits" / name)
    assert set(ImageFolder.find(u.tmp / "splits").splits) == {"train", "test"}


def shapes(*, removed=False, dtype=np.uint8):
    def call(u):
        path = u.tmp / "sixteen.png"
        if removed:
            path.unlink()
        else:
            image(path, dtype)
        return list(image_shapes(sorted(u.tmp.glob("*.png"))))

    return call


def table(*texts, labels=(), image=None, encoding="utf-8"):
    """Reads files with these texts; None stands for no file."""

    def call(u):
        files = {}
        for name, text in zip(["train", "test"], texts, strict=False):
            if text is not None:
                files[name] = u.tmp / f"{name}.csv"
                files[name].write_text(text, encoding=encoding)
        return Table.read(files, labels, image)

    return call


ROWS = [
    Row(
        "its images must lie in one folder for each label, and these may lie in one for each"
        " split.",
        "arrange the images as LABEL/NAME.jpg, or as SPLIT/LABEL/NAME.jpg",
        folder("1.png", "cat/2.png"),
        lambda u: moved(u, "dog/1.png", "cat/2.png"),
        folder_of_splits,
    ),
    Row(
        "this cannot be decoded as a JPEG or PNG image with 8 bits for each channel.",
        "save the image again as JPEG or PNG, or remove the file",
        shapes(dtype=np.uint16),
        shapes(),
        shapes(removed=True),
    ),
    Row(
        "it has no column ....",
        "use the name of a column, as 'kind'",
        table("size,kind\n1,a\n", labels=("kinds",)),
        table("size,kind\n1,a\n", labels=("kind",)),
    ),
    Row(
        "a row has no label: its ... is empty.",
        "write a label into each row, or remove the row",
        table("size,kind\n1,a\n2,\n", labels=("kind",)),
        table("size,kind\n1,a\n2,b\n", labels=("kind",)),
        table("size,kind\n1,a\n", labels=("kind",)),
    ),
    Row(
        "the file must be in UTF-8.",
        "save it as UTF-8",
        table("größe\n1\n", encoding="latin-1"),
        table("größe\n1\n"),
    ),
    Row(
        "its first line must name each column, and no two alike.",
        "write a line with a different name for each column at the top of the file",
        table("1,1\n2,3\n"),
        table("size,kind\n1,1\n2,3\n"),
    ),
    Row(
        "the files of all splits must have the same columns in the same order.",
        "write the same columns into all files, or convert the files one by one",
        table("size,kind\n1,a\n", "kind,size\na,1\n"),
        table("size,kind\n1,a\n", "size,kind\n1,a\n"),
        table("size,kind\n1,a\n"),
        table(None, "kind,size\na,1\n"),
    ),
    Row(
        "this row has another number of cells than there are columns.",
        'add or remove cells; a cell that holds a comma stands between two "',
        table("size,text\n1,a, b\n"),
        table("size,text\n1,a\n"),
        table('size,text\n1,"a, b"\n'),
    ),
    Row(
        "it has no row below the names of its columns.",
        "write a row for each record, or remove the file",
        table("size,kind\n1,a\n", "size,kind\n"),
        table("size,kind\n1,a\n", "size,kind\n2,b\n"),
        table("size,kind\n1,a\n"),
    ),
]
