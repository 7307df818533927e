"""The programs of the guide run, page by page, and the reference names all that is public."""

import ast
import importlib
import importlib.util
import re
import signal
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from advice import sites
from checkout import MODULES, ROOT
from tfds_datasets import detection_features, detection_record, store

import datarax_tfds
from datarax_tfds.order.order import Order

PAGES = sorted((ROOT / "docs").glob("*.md"))

CHECKPOINT = {"DataSave", "DataRestore", "DataCheckpointable", "latest_valid_step"}


# The libraries to move from whose programs run, where they are installed. `test_beside_datarax.py`
# runs that of datarax.
OTHERS = ["Grain", *["PyTorch"] * (importlib.util.find_spec("torch") is not None)]


def programs(page: Path, data_dir: Path, tmp_path: Path) -> list[str]:
    """Those of a page; only what names the dataset is another, since the test has no network."""
    opening = rf'```python(?: title="(?:{"|".join(OTHERS)})")?\n'
    found = re.findall(rf"{opening}(.*?)```", page.read_text(), re.DOTALL)
    here = f'"tiny", data_dir={str(data_dir)!r}'
    found = [re.sub('name="(mnist|imagenet2012)"', f"name={here}", program) for program in found]
    rows = ('name="lm1b"', f"name={here}".replace("tiny", "text", 1)), ("length=2048", "length=4")
    for written, run in rows:
        found = [program.replace(written, run) for program in found]
    if any("coco/2017" in program for program in found):
        records = map(detection_record, range(8))
        store(tmp_path, "detection", detection_features(tfds.features), records)
        here = f'name="detection", data_dir={str(tmp_path)!r}'
        found = [program.replace('name="coco/2017"', here) for program in found]
    yaml = f"  name: tiny\n  data_dir: {data_dir}\n"
    found = [program.replace("  name: mnist\n", yaml) for program in found]
    first = f'from_tfds("tiny", "train", data_dir={str(data_dir)!r},'
    found = [program.replace('from_tfds("mnist", "train",', first) for program in found]
    array_record = f'data_source("tiny_array", data_dir={str(data_dir)!r}'
    found = [program.replace('data_source("mnist"', array_record) for program in found]
    # Without processes of its own, which take seconds to start.
    workers = "mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=0))"
    found = [program.replace("mp_prefetch()", workers) for program in found]
    return [program.replace("num_workers=8", "num_workers=0") for program in found]


@pytest.fixture
def of_torch(data_dir, tmp_path):
    """What the program of PyTorch has from elsewhere: a dataset, and a job of one process."""
    if "PyTorch" not in OTHERS:
        yield {}
        return
    import torch.distributed

    config = datarax_tfds.TFDSStreamingConfig(name="tiny", split="train", data_dir=str(data_dir))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/job", rank=0, world_size=1
    )
    yield {"dataset": datarax_tfds.random_access(config), "processes": 1, "epochs": 1}
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_one_after_the_other(
    page, data_dir, tmp_path, monkeypatch, request
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of this process stay its own
    monkeypatch.chdir(tmp_path)  # for what a program writes
    steps = []
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        names = {"train_step": steps.append, "manager": manager, "model": {"w": jnp.zeros(2)}}
        names["directory"] = tmp_path / "another"
        if page.stem == "moving":
            names |= request.getfixturevalue("of_torch")
        run = programs(page, data_dir, tmp_path / "written")
        for program in run:
            exec(program, names)
    assert bool(steps) is ("train_step" in "".join(run))


TEXTS = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), ROOT / "scripts/README.md", *PAGES]
NAMED = re.compile(
    r"`((?:tests|scripts|docs|configs|datarax_tfds|sharding)/[\w./-]*|test_\w+\.py)[` ]"
)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_every_file_that_a_text_names_or_links_to_exists(text):
    for named in NAMED.findall(text.read_text()):
        assert (ROOT / named).exists() or (ROOT / "tests" / named).exists(), named
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text.read_text()):
        assert (text.parent / link).exists(), link


def test_every_name_that_the_architecture_places_in_a_file_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    places = re.findall(r"`(\w+)`(?: in| \|)\s+`([\w/]+\.py)`", page)
    assert len(places) > 9
    for name, path in places:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


def test_the_page_on_scripts_names_each_of_them():
    page = (ROOT / "scripts/README.md").read_text()
    scripts = [path for path in (ROOT / "scripts").rglob("*") if path.is_file()]
    helpers = {"README.md", "file_operations.py"}
    helpers |= {"benchmarking.py", "benchmark_data.py", "benchmark_words.py"}
    names = {path.name for path in scripts if path.suffix != ".pyc"} - helpers
    assert not [name for name in names if f"`{name}`" not in page]


def test_the_drawing_shows_the_order_that_the_library_computes():
    drawing = (ROOT / "docs/assets/overview.svg").read_text()
    numbers = [int(number) for number in re.findall(r'class="n"[^>]*>(\d+)<', drawing)]
    order = Order(12, seed=7).host_numbers(0, 0, 12).tolist()
    assert numbers == [*range(12), *order, *order[4:8] * 3]


def test_every_message_that_the_faq_explains_is_one_of_the_library():
    headings = re.findall(r'^### "(.*)"$', (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
    assert len(headings) > 15
    problems = {problem for site in sites() for problem in site.problems}
    # Those that `refused` does not make.
    trees = [
        ast.parse((ROOT / "datarax_tfds" / file).read_text())
        for file in ("_sharding_is_ours.py", "decoding/tensorflow_import.py")
    ]
    texts = [node.value for tree in trees for node in ast.walk(tree) if _is_text(node)]
    others = "\n".join(texts).replace("%s", "GPU")
    for heading in headings:
        said = any(_words(problem, heading) for problem in problems)
        assert said or heading in others, heading


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _words(problem: str, heading: str) -> bool:
    """Whether a heading is a problem of the code, or its beginning, with `...` for what is open."""
    worded = "...".join(problem.split("\0"))
    return worded == heading or (heading.endswith("...") and worded.startswith(heading[:-3]))


def test_the_drawings_of_the_concepts_are_those_of_the_script(tmp_path):
    import drawings

    drawings.main(tmp_path)
    for drawn in tmp_path.iterdir():
        assert (ROOT / "docs/assets" / drawn.name).read_text() == drawn.read_text(), drawn.name


PRIVATE = re.compile(
    r"jax\._src|jax\.core\.Tracer|jax\.extend|jax\.experimental|_pytree__unflatten|\._can_update"
    r"|tensorflow\.python|tensorflow_datasets\.core|raw_ops|_autograph\b|array_record\.python"
    r"|experimental\.v1\._src|ocdbt|_multiprocessing_options|sys\.monitoring|sys\._\w+"
)


def test_every_module_that_uses_a_private_interface_is_in_the_list_of_them():
    page = (ROOT / "docs/architecture.md").read_text()
    using = {path for path in MODULES if PRIVATE.search(path.read_text())}
    assert using
    assert not [path for path in using if f"`{path.relative_to(ROOT)}`" not in page]


REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def test_every_public_name_is_in_the_reference():
    described = re.findall(r"::: [\w.]*\.(\w+)", REFERENCE)
    assert sorted({*datarax_tfds.__all__, *CHECKPOINT}) == sorted(described)


def test_every_member_in_the_reference_exists():
    sections = re.findall(r"::: ([\w.]+)((?:\n +.*)*)", REFERENCE)
    members = [(name, member) for name, text in sections for member in re.findall(r"- (\w+)", text)]
    assert members
    for name, member in members:
        module, _, owner = name.rpartition(".")
        assert hasattr(getattr(importlib.import_module(module), owner), member), f"{name}.{member}"
