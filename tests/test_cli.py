"""The command line, and the names of the package, which import JAX only when it is needed."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
import warmed
from checkout import GUARD_S
from file_operations import file_operations

from datarax_tfds.cli import commands, index, main
from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.files.tfrecord_index import TFRecordOpener


def test_help_imports_no_jax_and_the_list_of_commands_no_tyro():
    code = (
        "import sys\n"
        "from datarax_tfds.cli import commands, main\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        "assert not {'rich', 'tyro', 'typing_extensions'} & set(sys.modules)\n"
        "for name in commands: assert main([name, '--help']) == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'sharding', 'tensorflow', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=GUARD_S, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, said in commands.items():
        assert f"{name} " in done.stdout
        assert said in done.stdout
        assert f"usage: datarax-tfds {name} [-h]" in done.stdout


def test_the_command_is_installed(tmp_path):
    (script,) = entry_points(group="console_scripts", name="datarax-tfds")
    assert script.load() is main
    # A program of that name calls main() with the arguments of its process.
    code = "import sys; from datarax_tfds.cli import main; sys.exit(main())"
    done = warmed.run([sys.executable, "-c", code, "index", str(tmp_path)], timeout=GUARD_S)
    assert (done.returncode, done.stdout) == (1, "0 of 0 TFRecord files have an index\n")


def test_the_version_is_that_of_the_distribution(capsys):
    import datarax_tfds

    assert datarax_tfds.__version__ == version("datarax-tfds")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"datarax-tfds {datarax_tfds.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", f"a command is missing; the commands are {', '.join(commands)}"),
        ("adit", "there is no command 'adit'; did you mean audit?"),
        ("xyz", f"there is no command 'xyz'; the commands are {', '.join(commands)}"),
        ("index mnist --data-dri data", r"Perhaps you meant:.*\n.*\n?.*--data-dir"),
        ("index", r"Missing from datarax-tfds index:\W*DATASET"),
        ("audit", "datarax-tfds audit: give the paths of the cursor logs"),
    ],
)
def test_a_wrong_command_line_says_what_was_meant(words, said, capsys):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(said, printed.err), printed.err


def test_an_error_of_the_library_is_printed_without_a_traceback(tmp_path, capsys):
    assert main(["index", "tny", "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert re.match(r"tny:all: the dataset is not prepared(.|\n)*fix: ", printed)
    assert "Traceback" not in printed


@pytest.mark.parametrize("words", ["launch 2 -- nowhere/program", "audit nowhere.jsonl"])
def test_what_cannot_be_read_is_said_with_the_name_of_the_command(words, capsys):
    assert main(words.split()) == 2
    said = rf"datarax-tfds {words.split()[0]}: .*No such file or directory: 'nowhere[/.]\w+'\n"
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize("words", ["info --device-gib nan", "info --device-gib -1",
                                   "verify --processes 0", "show --records 0"])  # fmt: skip
def test_numbers_that_cannot_be_are_refused_with_what_was_got(words, data_dir, capsys):
    command, option, value = words.split()
    assert main([command, "tiny", "--data-dir", str(data_dir), option, value]) == 2
    assert re.search(rf"{option} must be .*, got {float(value):g}", capsys.readouterr().err)


def test_an_error_that_is_not_the_librarys_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("datarax_tfds.cli.index.Command.run", lambda command: int("fault"))
    with pytest.raises(ValueError, match="fault"):
        main(["index", "tiny"])


@pytest.mark.parametrize("place", ["gs://", "gs://bucket/../tiny", "http://host/tiny"])
def test_a_place_that_is_not_read_is_refused(place, capsys):
    assert main(["index", place]) == 2
    assert re.search("fix: ", capsys.readouterr().err)


def test_a_fault_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(index.Command, "run", lambda _: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        main(["index", "mnist"])


@pytest.mark.parametrize(
    ("words", "is_directory"),
    [
        (["mnist"], False),
        (["coco/2017"], False),  # no directory of that name is here
        (["coco/2017:1.1.0"], False),
        (["gs://bucket/mnist/3.0.1"], True),
        (["/data/mnist"], True),
        (["./mnist"], True),
        (["~/data/mnist/3.0.1"], True),
        (["data/tiny"], True),  # it is here
        (["tiny"], False),  # a folder of this name holds no version
        (["version"], True),
        (["data/tiny", "elsewhere"], False),
    ],
)
def test_a_dataset_is_a_name_or_a_directory(words, is_directory, tmp_path, monkeypatch):
    for folder in ("tiny", "data/tiny", "version"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "version" / "features.json").touch()
    monkeypatch.chdir(tmp_path)
    assert Dataset(*words).is_directory is is_directory


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
        "import sys, datarax_tfds; assert datarax_tfds.show;"
        " assert not {'matplotlib', 'tyro'} & set(sys.modules)",
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
