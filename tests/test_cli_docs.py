"""What the documentation says that each command prints, and that none is missing there."""

import importlib
import re
import shlex
from pathlib import Path

import config_file
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(?:sh|console)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:datarax-tfds|python scripts/)[^`]*)`")  # within a sentence or a table


def lines_of(page: Path) -> list[str]:
    """The commands of a page, without the dollar sign."""
    text = page.read_text()
    blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ")
    spans = [" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text))]
    # Those with a word such as COMMAND, or with a name of a command only, are no examples.
    spans = [span for span in spans if not re.search(r" [A-Z]+( |$)|^\S+( \w+)?$", span)]
    return [line.strip().removeprefix("$ ") for line in blocks.splitlines()] + spans


def test_commands_and_scripts_understand_every_line_of_the_documentation(monkeypatch):
    for name in commands:
        command = importlib.import_module(f"datarax_tfds.cli.{name}").Command
        monkeypatch.setattr(command, "run", lambda _: 0)
    monkeypatch.chdir(ROOT)
    understood = {"datarax-tfds": 0, "train": 0, "benchmarks": 0}
    for line in {line for page in PAGES for line in lines_of(page)}:
        if line.startswith("datarax-tfds "):
            assert main(shlex.split(line, comments=True)[1:]) == 0, line
            understood["datarax-tfds"] += 1
        # After a launcher, too.
        if found := re.search(r"scripts/(train\w*)\.py( configs/.*)", line):
            words = shlex.split(found[2], comments=True)
            script = importlib.import_module(found[1])
            assert config_file.config_from_args(script.Config, [w for w in words if w != "--help"])
            understood["train"] += 1
        if found := re.search(r"scripts/benchmarks/\w+\.py(.*)", line):
            text = Path(found[0].split()[0]).read_text()
            for option in re.findall(r"--([\w-]+)", found[1]):
                assert re.search(rf"^    {option.replace('-', '_')}: ", text, re.MULTILINE), line
            understood["benchmarks"] += 1
    assert min(understood.values()) > 9, understood
