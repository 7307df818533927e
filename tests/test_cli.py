"""The command line, and the names of the package, which import JAX only when it is needed."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import warmed
from checkout import GUARD_S
from file_operations import file_operations

from datarax_tfds.cli import main
from datarax_tfds.files.tfrecord_index import TFRecordOpener


@pytest.mark.parametrize("words", ["--help", "--version", "audit --help", "index --help"])
def test_help_imports_no_jax(words):
    code = (
        "import sys\n"
        "from datarax_tfds.cli import main\n"
        f"try: main({words.split()})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'jax', 'flax', 'numpy', 'sharding', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=GUARD_S, cwd="/")


def test_the_version_is_that_of_the_distribution(capsys):
    import datarax_tfds

    assert datarax_tfds.__version__ == version("datarax-tfds")
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"datarax-tfds {datarax_tfds.__version__}\n"


def test_a_command_that_does_not_exist_ends_with_the_commands_that_do(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["adit"])
    assert "audit" in capsys.readouterr().err


def check(code: str) -> None:
    done = warmed.run([sys.executable, "-c", code], timeout=GUARD_S, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "from datarax_tfds import *; assert Pipeline and audit and initialize",
        "import datarax_tfds; assert datarax_tfds.pipeline.Pipeline is datarax_tfds.Pipeline",
        "import datarax_tfds.tfds_source as t; from datarax_tfds import TFDSEagerSource as s;"
        " assert t.TFDSEagerSource is s",
        "from datarax_tfds import checkpoint; assert checkpoint.DataSave",
        "import datarax_tfds; assert set(datarax_tfds.__all__) < set(dir(datarax_tfds))",
        "import datarax_tfds, pickle; c = datarax_tfds.Cursor(1, 2);"
        " assert pickle.loads(pickle.dumps(c)) == c",
        "import datarax_tfds; assert not hasattr(datarax_tfds, 'Pipline')",
        "import datarax_tfds; assert not {'Any', 'sys', 'version'} & set(dir(datarax_tfds))",
    ],
)
def test_public_names_are_found_at_their_first_use(use):
    check(use)


def test_python_suggests_the_nearest_of_the_public_names():
    misspelled = "import sys, datarax_tfds; datarax_tfds.Pipline"
    done = warmed.run([sys.executable, "-c", misspelled], timeout=GUARD_S)
    said = "module 'datarax_tfds' has no attribute 'Pipline'. Did you mean: 'Pipeline'?"
    assert said in done.stderr


def test_a_first_use_inside_a_transformation_is_one_like_any_other():
    check(
        "import jax, datarax_tfds\n"
        "jax.jit(lambda x: [x, datarax_tfds.Pipeline][0])(1)\n"
        "from datarax_tfds.runtime.untraced import is_traced\n"
        "assert not is_traced()\n"
        "jax.jit(lambda x: [x][is_traced() - 1])(1)\n"
    )


def test_index_builds_the_indexes_that_are_missing_and_names_the_files_it_cannot(
    data_dir, tmp_path, capsys
):
    version = shutil.copytree(data_dir / "tiny" / "1.0.0", tmp_path / "1.0.0")
    shutil.rmtree(version / ".record_index", ignore_errors=True)
    first, *others = sorted(version.glob("*.tfrecord*"))
    with file_operations() as counts:
        TFRecordOpener()(first)
    assert counts["replace"] == 1
    others[-1].write_bytes(b"damaged")
    assert main(["index", str(version)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{len(others)} of {len(others) + 1} TFRecord files have an index\n"
    assert re.search(rf"{others[-1].name}: .*cut short(.|\n)*fix:", printed.err)
    others.pop().unlink()
    assert main(["index", str(version)]) == 0
    assert TFRecordOpener().unindexed([first, *others]) == []
    assert main(["index", str(tmp_path)]) == 1  # there are no TFRecord files
