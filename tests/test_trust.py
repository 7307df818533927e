"""Data are never code: what a dataset, a name or a config asks for beyond being read is refused."""

import ast
import json
import re
import shutil
import sys
import traceback

import pytest
import warmed
from checkout import GUARD_S, MODULES, ROOT, TRAIN, WORKERS

from datarax_tfds import (
    DataLossError,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    TrustError,
)
from datarax_tfds.files.preparing import only_preparer
from datarax_tfds.files.split import open_split
from datarax_tfds.state import state_file

PLANTED = "raise SystemExit(open({marker!r}, 'w').write('was run'))"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that appears when one of the planted modules is imported."""
    modules, path = tmp_path / "modules", tmp_path / "was-run"
    for name in ("planted", "tensorflow_datasets_planted", "huggingface", "planted_package/sub"):
        file = (modules / name).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PLANTED.format(marker=str(path)))
    monkeypatch.syspath_prepend(str(modules))
    yield path
    assert not path.exists()


@pytest.fixture
def dataset(data_dir, tmp_path):
    """A copy of a dataset, to be tampered with."""
    shutil.copytree(data_dir / "tiny", tmp_path / "data" / "tiny")
    return tmp_path / "data" / "tiny" / "1.0.0"


def opened(dataset, **fields):
    fields = {"name": "tiny", "split": "train", "data_dir": str(dataset.parents[1])} | fields
    return open_split(TFDSEagerConfig(**fields))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CLASSES = [
    "planted.Feature",
    "planted_package.sub.Feature",
    "tensorflow_datasets_planted.Feature",
    "tensorflow_datasets.planted.Feature",
    "tensorflow_datasets.core.features_planted.Feature",
    "tensorflow_datasets.core.features/../../planted.Feature",
    "tensorflow_datasets.core.features.\nplanted.Feature",
    "tensorflow_datasets.core.features. planted.Feature",
    "antigravity.Feature",
    "this.Feature",
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("where", ["top", "nested", "legacy", "other spelling", "within text"])
def test_a_class_that_features_name_is_not_imported(dataset, marker, name, where):
    def change(features):
        if where == "top":
            features["pythonClassName"] = name
        elif where == "nested":
            inner = next(iter(features["featuresDict"]["features"].values()))
            inner["pythonClassName"] = name
        elif where == "other spelling":
            features["python_class_name"] = features.pop("pythonClassName")
            inner = next(iter(features["featuresDict"]["features"].values()))
            inner["python_class_name"] = name
        elif where == "within text":
            inner = next(iter(features["featuresDict"]["features"].values()))
            inner["jsonFeature"] = {"json": json.dumps({"pythonClassName": name})}
        else:
            features.clear()
            features |= {"type": name, "content": {}}

    edit(dataset / "features.json", change)
    with pytest.raises(TrustError, match=r"features.json: (.|\n)*not imported(.|\n)*fix:"):
        opened(dataset)
    assert name.rpartition(".")[0] not in sys.modules


def test_a_feature_of_a_module_that_is_imported_is_read(dataset, tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(
        "import tensorflow_datasets as tfds\nclass Own(tfds.features.Tensor):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def change(features):
        features["featuresDict"]["features"]["id"] = {
            "pythonClassName": "own_features.Own",
            "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
        }

    edit(dataset / "features.json", change)
    with pytest.raises(TrustError, match=r"own_features.Own(.|\n)*fix:"):
        opened(dataset)
    import own_features  # noqa: F401

    assert len(opened(dataset)) == 97


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"pythonClassName": NaN', "\ufeff{}"], ids=range(5)
)
def test_features_that_are_not_json_are_refused(dataset, text):
    (dataset / "features.json").write_text(text)
    with pytest.raises(DataLossError, match=r"features.json: (.|\n)*fix:"):
        opened(dataset)


def test_what_cannot_be_decoded_is_not_quoted(dataset):
    """The record is in neither the message nor the traceback."""
    import tensorflow as tf

    for shard in dataset.glob("*train.tfrecord*"):
        records = len(list(tf.data.TFRecordDataset(str(shard))))
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for _ in range(records):
                writer.write(b"a secret of somebody's")
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=str(dataset.parents[1]))
    source = TFDSStreamingSource(config)
    with pytest.raises(
        DataLossError, match=r"cannot be decoded(.|\n)*tfds_id(.|\n)*fix:"
    ) as raised:
        source.get_batch(8)
    assert "secret" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("template", ["../outside-{SPLIT}", "/etc/{SPLIT}", "a/{SPLIT}", ".."])
def test_files_outside_of_the_dataset_are_refused(dataset, template):
    def change(info):
        for split in info["splits"]:
            split["filepathTemplate"] = template + "-{SHARD_X_OF_Y}.{FILEFORMAT}"

    edit(dataset / "dataset_info.json", change)
    # Named, or not found: TFDS makes some of them harmless itself.
    with pytest.raises((TrustError, DataLossError), match=r"(.|\n)*fix:"):
        opened(dataset)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt"])
def test_metadata_that_are_links_elsewhere_are_refused(dataset, tmp_path, name):
    """A file of labels would show what it links to."""
    outside = tmp_path / name
    if (dataset / name).exists():
        shutil.move(dataset / name, outside)
    else:
        outside.write_text("0\n1\n2\n3\n4\n5\n6\n")
    (dataset / name).symlink_to(outside)
    with pytest.raises(TrustError, match=r"are elsewhere(.|\n)*fix:"):
        opened(dataset)


def test_a_default_config_leads_nowhere_else(dataset, tmp_path):
    shutil.move(dataset, tmp_path / "data" / "outside" / "1.0.0")
    folder = dataset.parent / ".config"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text('{"default_config_name": "../outside"}')
    with pytest.raises((TrustError, FileNotFoundError), match=r"fix:"):
        opened(dataset, local_files_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "planted:tiny",
        "huggingface:tiny",
        "kubric:movi_a",
        "planted",
        "planted.Feature",
        "tiny/config=planted.Config",
    ],
)
def test_a_name_brings_in_neither_code_nor_a_path(dataset, marker, name):
    with pytest.raises((ValueError, FileNotFoundError), match=r"(.|\n)*fix:"):
        opened(dataset, name=name, local_files_only=True)


def test_an_index_is_not_written_through_a_link(dataset, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.rmtree(dataset / ".record_index", ignore_errors=True)
    (dataset / ".record_index").symlink_to(outside)
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=str(dataset.parents[1]))
    assert len(TFDSStreamingSource(config)) == 97
    assert list(outside.iterdir()) == []
    assert list((tmp_path / "cache").rglob("*"))


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / ".1.0.0.lock").symlink_to(outside)
    with (
        pytest.raises(FileNotFoundError, match=r"cannot be(.|\n)*symbolic(.|\n)*fix:"),
        only_preparer(tmp_path / "1.0.0", "test"),
    ):
        pass
    assert outside.read_text() == "kept"


def test_a_state_is_not_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    (tmp_path / state_file.NAME).symlink_to(outside)
    with pytest.raises(OSError, match="exists"):
        state_file.write(tmp_path, {})
    assert not outside.exists()


@pytest.mark.parametrize("value", ["cos\nsystem\n(S'x'\ntR.", "gASVBQAAAAAAAACMAXiULg=="])
def test_a_pickle_in_a_state_stays_text(tmp_path, value):
    (tmp_path / state_file.NAME).write_text(json.dumps(value))
    with pytest.raises(StateMismatchError, match="fix:"):
        state_file.read(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "dataset: !!python/object/apply:os.system ['touch hacked']",
        "dataset: !!python/name:planted.Feature",
        "dataset: !!python/module:planted",
        "dataset: !!python/object/new:planted.Feature {}",
        "load: planted",
    ],
)
def test_a_config_file_runs_nothing(tmp_path, marker, line):
    (tmp_path / "config.yaml").write_text(line)
    done = warmed.run([*TRAIN[:2], "config.yaml"], cwd=tmp_path, timeout=GUARD_S)
    assert done.returncode != 0
    assert re.search("python/|there is no key 'load'", done.stderr)
    assert not (tmp_path / "hacked").exists()


FORBIDDEN = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "subprocess", "pty", "ctypes"}
# A process of a user starts the one that talks to Ray, and tells it and its workers what to open,
# by import path. They load what this process sends, as all programs of Ray do, and no data.
OF_WORKERS = {
    "description": {"pickle", "cloudpickle"},
    "driver_process": {"pickle", "subprocess"},
    "ray_driver": {"pickle"},
    "ray_worker": {"pickle"},
}


@pytest.mark.parametrize(
    "path", [*MODULES, *(ROOT / "scripts").rglob("*.py")], ids=lambda p: p.stem
)
def test_the_code_neither_unpickles_nor_evaluates(path):
    # They start the commands and import the files that their user names.
    run_by_hand = not {"scripts", "cli"}.isdisjoint(path.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            allowed = {"subprocess"} if run_by_hand else set()
            if path.parent.name == "service":
                allowed = OF_WORKERS.get(path.stem, set())
            assert not names & (FORBIDDEN - allowed)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            forbidden = {"eval", "exec", "__import__", "os.system", "yaml.load"}
            assert called not in forbidden | ({"compile"} if "scripts" not in path.parts else set())
            assert not called.endswith(("np.load", "numpy.load"))
            imports = run_by_hand or path.match("service/description.py")
            assert imports or not called.endswith("import_module")


def test_a_run_from_data_to_restore_unpickles_and_starts_nothing(data_dir, tmp_path):
    """Behind the imports, under an audit hook: no code from data, no process, no connection."""
    command = [sys.executable, WORKERS / "watched.py", data_dir, tmp_path]
    done = warmed.run(list(map(str, command)), timeout=GUARD_S)
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads((tmp_path / "events.json").read_text())
    assert events["open"] > 10  # the hook was there
    calls = ("connect", "bind", "getaddrinfo", "gethostbyname", "sendto")
    unwanted = [f"socket.{call}" for call in calls]
    unwanted += ["pickle", "subprocess", "os.exec", "os.fork", "os.posix_spawn", "os.system"]
    assert [event for event in events if event.startswith(tuple(unwanted))] == []
