"""What the documentation says that each command prints, and that none is missing there."""

import re
import shlex
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from checkout import ROOT
from PIL import Image

from datarax_tfds.cli import commands, main

PAGE = (ROOT / "docs/command_line.md").read_text()
# A command after a dollar sign, and what it prints; `...` stands for what differs between machines.
TEXTS = PAGE + (ROOT / "docs/own_data.md").read_text()
EXAMPLES = re.findall(r"```console\n\$ datarax-tfds (.*)\n((?:.*\n)*?)```", TEXTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory like that of the repository, with the data of the demo, and photographs."""
    import digits

    place = tmp_path_factory.mktemp("digits")
    no_gcs = tfds.download.DownloadConfig(try_download_gcs=False)
    for folder in ("configs", "scripts"):
        (place / folder).symlink_to(ROOT / folder)
    for label, number in [("daisy", 1), ("daisy", 2), *(("rose", n) for n in range(4))]:
        path = place / "photos" / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 5)).save(path)
    (place / "trees.csv").write_text("kind,height\noak,9.5\nfir,12\nfir,\noak,3\n")
    digits.Digits(data_dir=str(place / "data")).download_and_prepare(download_config=no_gcs)
    return place


@pytest.mark.parametrize(("words", "printed"), EXAMPLES, ids=[words for words, _ in EXAMPLES])
def test_an_example_prints_what_the_page_says(words, printed, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(shlex.split(words)) == 0
    expected = ".*".join(map(re.escape, printed.split("...")))
    said = capsys.readouterr().out
    assert re.fullmatch(expected, said), said


def test_each_command_has_a_section():
    assert sorted(re.findall(r"^## ([a-z]+)$", PAGE, re.MULTILINE)) == sorted(commands)
