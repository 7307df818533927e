"""A prepared dataset is found by its name or by its directory, however users write them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from datarax_tfds import (
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TrustError,
    from_tfds,
)
from datarax_tfds.files.split import open_split

ODD_NAMES = ["my-dataset", "2dshapes", "Made", "données", "v1.2", "a+b"]


def opened(name="tiny", split="train", **fields):
    return open_split(TFDSEagerConfig(name=name, split=split, **fields))


@pytest.fixture(scope="module")
def root(data_dir, tmp_path_factory):
    """A data_dir with names of all kinds, configs and versions."""
    import tensorflow_datasets as tfds

    place = tmp_path_factory.mktemp("root")
    for name in ["tiny", *ODD_NAMES]:
        shutil.copytree(data_dir / "tiny", place / name)
    (place / "with space").symlink_to(place / "tiny")
    for version, config in (("1.0.0", "small"), ("1.2.0", "small"), ("1.10.0", "large")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="sized",
            config=config,
            version=version,
            features=tfds.features.FeaturesDict({"id": np.int32}),
            split_datasets={"train": [(0, {"id": 0}), (1, {"id": 1})]},
            data_dir=place,
        )
    shutil.rmtree(place / "sized" / ".config")  # which says what the default config is
    return place


@pytest.fixture(autouse=True)
def working_directory(root, monkeypatch):
    monkeypatch.chdir(root / "tiny")


@pytest.mark.parametrize(
    "written",
    [
        "..",
        "../",
        "./..",
        "../tiny/..",
        "../../{root.name}",
        "{root}",
        "{root}/",
        "{root}//",
        "{root}/tiny/..",
        Path(".."),
        "~/{root.name}",
        "~/{root.name}/tiny/../",
    ],
)
def test_a_data_dir_is_read_as_users_write_it(root, written, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    if isinstance(written, str):
        written = written.format(root=root)
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=written)
    source = TFDSEagerSource(config)
    monkeypatch.chdir("/")
    assert (source.dataset_name, len(source)) == ("tiny", 97)
    assert source.get_batch(2)["id"].tolist() == [0, 1]


def test_a_stream_goes_on_after_the_working_directory_has_changed(monkeypatch):
    source = from_tfds("tiny", "train", data_dir="..", eager=False)
    monkeypatch.chdir("/")
    assert source.get_batch(3)["id"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_directory_of_any_name_is_a_dataset(root, name):
    assert len(opened(name, data_dir=root)) == 97
    assert len(opened(f"{name}:1.0.0", data_dir=root)) == 97


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tiny", "tiny"),
        ("tiny", "tiny/1.0.0"),
        ("tiny", "tiny/1.0.0/"),
        ("tiny:1.0.0", "tiny/1.0.0"),
        ("tiny:1.*.*", "tiny"),
        ("my-dataset", "my-dataset/1.0.0"),  # by its place
        ("tiny", "my-dataset/1.0.0"),  # by what its metadata say
        ("sized/small", "sized"),
        ("sized/small", "sized/small"),
        ("sized", "sized/small"),
        ("sized", "sized/small/1.0.0"),
        ("sized/small", "sized/small/1.0.0"),
        ("sized/small:1.0.0", "sized/small"),
    ],
)
def test_a_data_dir_may_be_that_of_the_dataset_itself(root, name, place):
    assert opened(name, data_dir=root / place).dataset.startswith(("tiny/", "sized/small/"))


@pytest.mark.parametrize(
    ("directory", "dataset"),
    [
        ("tiny", "tiny/1.0.0"),
        ("tiny/1.0.0", "tiny/1.0.0"),
        ("données/1.0.0/", "tiny/1.0.0"),
        ("with space/1.0.0", "tiny/1.0.0"),
        ("sized/small", "sized/small/1.2.0"),
        ("sized/small/1.0.0", "sized/small/1.0.0"),
        ("sized/large", "sized/large/1.10.0"),
    ],
)
@pytest.mark.parametrize("kind", [TFDSEagerConfig, TFDSStreamingConfig])
def test_a_dataset_is_opened_by_its_directory(root, directory, dataset, kind):
    config = kind.from_directory(root / directory, split="train", shuffle=True)
    assert config.shuffle
    assert open_split(config).dataset == dataset
    assert open_split(kind.from_directory(os.path.join("..", directory), "train")) is not None


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("nowhere", "not the directory of a prepared dataset.*which is no directory"),
        ("", "not the directory of a.*holds: .*tiny.*fix: +pass the directory of one .*/2dsh"),
        ("tiny/2.0.0", "not the directory.*which is no directory.*fix: +use .*tiny/1.0.0"),
    ],
)
def test_a_directory_that_holds_no_dataset_is_refused_with_what_it_holds(root, directory, message):
    with refused(DatasetNotFoundError, message):
        TFDSEagerConfig.from_directory(root / directory, split="train")


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("mode", "tiny/1.0.0", "data_dir is itself the dataset 'tiny'.*fix: +use name='tiny'"),
        ("mode", "my-dataset", "data_dir is itself the dataset 'my-dataset'.*'my-dataset'"),
        ("mnist", "tiny", "data_dir is itself the dataset 'tiny'.*fix: +use name='tiny'"),
        ("tiny:2.0.0", "tiny/1.0.0", "not as 'tiny:2.0.0'; there are: tiny:1.0.0.*'tiny:1.0.0'"),
        ("tiny", "tiny/2.0.0", "there is no directory.*fix: +use data_dir='.*/tiny/1.0.0'"),
        ("tiny:*.9.*", "", "not as .*there are: tiny:1.0.0.*fix: +use name='tiny:1.0.0'"),
        ("tiny/1.0.0", "", "not as .*there are: tiny:1.0.0.*fix: +use name='tiny:1.0.0'"),
        ("tiny/other", "", "not as 'tiny/other'; there are: tiny:1.0.0.*fix: +use name='tiny'"),
        ("sized/smal", "", "there are: sized/large:1.10.0, sized/small:1.0.0.*'sized/small'"),
        ("sized", "", "there are: sized/large:1.10.0, sized/small.*name='sized/(large|small)'"),
        ("sized/small:9.0.0", "", "there are: .*small:1.0.0, .*small:1.2.0.*small:1.[02].0'"),
        ("sized/1.0.0", "sized/small", "not as 'sized/1.0.0'.*fix: +use name='sized/small:1.0.0'"),
        ("my_dataset", "", "TFDS knows none of that name.*fix: +use name='my-dataset'"),
        ("mnst", "", "TFDS knows none.*prepared: .*tiny.*fix: +use name='mnist'"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(root, name, place, message):
    with refused(DatasetNotFoundError, message):
        opened(name, data_dir=root / place)


class TestSeveralDirectories:
    """As TFDS has it: its own, and those registered with it."""

    @pytest.fixture(autouse=True)
    def own(self, root, tmp_path, monkeypatch):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import constants
        from tensorflow_datasets.core.utils import file_utils

        monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))  # as TFDS_DATA_DIR does
        tfds.core.add_data_dir(root)
        yield
        file_utils.clear_registered_data_dirs()

    def test_all_are_searched(self, root, tmp_path):
        shutil.copytree(root / "tiny", tmp_path / "only_here")
        assert len(opened("only_here")) == 97
        assert len(opened("my-dataset")) == 97
        with refused(DatasetNotFoundError, f"searched: .*{root}"):
            opened("nothing-like-it")

    def test_a_dataset_in_two_of_them_is_refused_and_one_is_chosen(self, root, tmp_path):
        shutil.copytree(root / "tiny", tmp_path / "tiny")
        with refused(
            ValueError,
            f"'tiny' is prepared in several.*found: .*{tmp_path}.*fix: +choose one: data_dir=",
        ):
            opened("tiny")
        assert len(opened("tiny", data_dir=tmp_path)) == 97

    def test_the_same_directory_by_two_ways_is_one(self, root, tmp_path):
        (tmp_path / "tiny").symlink_to(root / "tiny")
        assert len(opened("tiny")) == 97


class TestLinks:
    """Links are followed where they lead to data; metadata that lead elsewhere are not read."""

    @pytest.mark.parametrize("store", ["blobs", ".git/annex/objects", ".dvc/cache/files"])
    def test_a_snapshot_whose_files_are_links_into_a_store_is_read(self, root, tmp_path, store):
        snapshot = tmp_path / "datasets--mine" / "snapshots" / "0123abc"
        version = snapshot / "tiny" / "1.0.0"
        version.mkdir(parents=True)
        blobs = tmp_path / "datasets--mine" / store
        blobs.mkdir(parents=True)
        for number, file in enumerate(sorted((root / "tiny" / "1.0.0").iterdir())):
            if file.is_file():
                shutil.copy(file, blobs / str(number))
                target = os.path.relpath(blobs / str(number), version)
                (version / file.name).symlink_to(target)
        source = TFDSEagerSource(
            TFDSEagerConfig(name="tiny", split="train", data_dir=snapshot, include_keys={"id"})
        )
        assert source.get_batch(97)["id"].tolist() == list(range(97))
        assert len(open_split(TFDSEagerConfig.from_directory(version, "train"))) == 97

    @pytest.mark.parametrize("linked", ["data_dir", "dataset", "version", "files below data_dir"])
    def test_a_link_above_the_files_is_followed(self, root, tmp_path, linked):
        place = tmp_path / "data"
        if linked == "data_dir":
            place.symlink_to(root)
        elif linked == "dataset":
            place.mkdir()
            (place / "tiny").symlink_to(root / "tiny")
        elif linked == "version":
            (place / "tiny").mkdir(parents=True)
            (place / "tiny" / "1.0.0").symlink_to(root / "tiny" / "1.0.0")
        else:
            shutil.copytree(root / "tiny" / "1.0.0", place / "..files")
            (place / "tiny" / "1.0.0").mkdir(parents=True)
            for file in (place / "..files").iterdir():
                (place / "tiny" / "1.0.0" / file.name).symlink_to(file)
        assert len(opened(data_dir=place)) == 97

    def test_a_link_elsewhere_is_refused_until_it_is_a_copy(self, root, tmp_path):
        version = tmp_path / "data" / "tiny" / "1.0.0"
        shutil.copytree(root / "tiny" / "1.0.0", version)
        shutil.move(version / "features.json", tmp_path / "else where.json")
        (version / "features.json").symlink_to(tmp_path / "else where.json")
        with refused(TrustError, "features.json is a link.*fix: +.*cp --remove-destin") as caught:
            opened(data_dir=tmp_path / "data")
        command = str(caught.value).split("of the link: ")[1]
        assert os.system(command) == 0
        assert len(opened(data_dir=tmp_path / "data")) == 97

    def test_a_loop_of_links_beside_the_files_is_not_followed(self, root, tmp_path):
        version = tmp_path / "tiny" / "1.0.0"
        shutil.copytree(root / "tiny" / "1.0.0", version)
        (version / "extra.txt").symlink_to(version / "extra.txt")
        assert len(opened(data_dir=tmp_path)) == 97


def test_a_download_that_the_network_does_not_know_is_told_at_once(tmp_path, root):
    import tensorflow_datasets as tfds

    class FarAway(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {"https://data.invalid/a.zip": None}  # noqa: RUF012
        asked = 0

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"id": np.int32})
            )

        def _split_generators(self, dl_manager):
            FarAway.asked += 1
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"id": 0}

    with refused(DatasetNotFoundError, r"the network does not know.*data.invalid.*tfds build"):
        opened("far_away", data_dir=tmp_path)
    assert FarAway.asked == 0
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.zip").write_bytes(b"")  # was downloaded before
    assert len(opened("far_away", data_dir=tmp_path)) == 1


@pytest.mark.parametrize("name", ["mnist:9.9.9", "glue/colla", "mnist/big"])
def test_what_tfds_cannot_prepare_is_told_with_what_it_can(tmp_path, name):
    with refused(
        DatasetNotFoundError, "TFDS cannot prepare that.*fix: +use name='(mnist|glue/cola)'"
    ):
        opened(name, data_dir=tmp_path)
