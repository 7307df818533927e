"""Pictures: of which rows each device holds."""

import json
import re

import jax
import matplotlib
import pytest
from conftest import shardings

from datarax_tfds import batch_sharding, draw_placement, make_mesh
from datarax_tfds.cli import main
from datarax_tfds.pictures.placement import DeviceRows, device_rows, merged
from sharding import local_rows

MESHES = [name for name, placed in shardings().items() if placed is not None]
PNG = b"\x89PNG"


@pytest.mark.parametrize("mesh", MESHES)
def test_the_rows_of_a_device_are_those_that_a_batch_has_there(mesh):
    sharding = shardings()[mesh]
    found = {(each.device, each.start, each.stop) for each in device_rows(sharding, 48)}
    places = local_rows(sharding, 48).items()
    assert found == {(device.id, *rows) for rows, devices in places for device in devices}
    for each in device_rows(sharding, 48):
        at = sharding.mesh.devices[tuple(each.place.values())]
        assert (at.id, at.process_index) == (each.device, each.process)


def test_slices_that_touch_are_merged():
    held = [DeviceRows(0, 0, {}, *rows) for rows in [(8, 16), (24, 32), (16, 24), (8, 16), (0, 4)]]
    assert merged(held) == [(0, 4), (8, 32)]


@pytest.mark.parametrize("devices", [8, 1])
def test_a_picture_has_a_bar_for_the_rows_of_each_device(devices, tmp_path):
    backend = matplotlib.get_backend(auto_select=False)
    mesh = make_mesh({"data": -1}, devices=jax.devices()[:devices])
    picture = draw_placement(batch_sharding(mesh), 16)
    (axes,) = picture.figure.axes
    bars = axes.patches[devices:]  # after those of the whole batch
    size = 16 // devices
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [
        (size * number, size) for number in range(devices)
    ]
    labels = [text.get_text() for text in axes.texts]
    assert labels[0] == f"0-{size - 1}"
    picture.save(tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(PNG)
    assert picture._repr_png_().startswith(PNG)  # what a notebook asks for
    assert matplotlib.get_backend(auto_select=False) == backend  # pyplot was not touched


class TestPlace:
    """`datarax-tfds place`, of meshes that are not here."""

    def test_hosts_hold_rows_as_on_real_devices(self, capsys):
        sharding = batch_sharding(make_mesh({"data": 4, "model": 2}))
        words = "--devices 8 --mesh data=4,model=-1 --batch-size 32 --json"
        assert main(["place", *words.split()]) == 0
        imagined = json.loads(capsys.readouterr().out)
        assert imagined == [vars(each) for each in device_rows(sharding, 32)]

    def test_a_thousand_hosts_are_placed_and_drawn(self, tmp_path, capsys):
        picture = tmp_path / "rows.png"
        words = f"--mesh data=2048,model=4 --hosts 1024 --batch-size 8192 --picture {picture}"
        assert main(["place", *words.split()]) == 0
        printed = capsys.readouterr().out
        assert "host 1023 reads 8 rows: 8184:8192\n" in printed
        assert picture.read_bytes().startswith(PNG)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("--mesh data=4,model", "--mesh must be sizes by name"),
            ("--mesh data=x", "--mesh must be sizes by name"),
            ("--mesh data=3 --devices 8", "--mesh must be sizes by name"),
            ("--mesh data=0 --devices 0", "--mesh must be sizes by name"),
            ("--mesh data=-1", "one size may be -1 if --devices is given"),
            ("--mesh data=8 --hosts 3", "a multiple of the number of --hosts"),
            ("--mesh data=8 --hosts 0", "a multiple of the number of --hosts"),
            ("--mesh rows=8", "use axes='rows'"),
            ("--mesh data=6", "use 30 or 36"),
        ],
    )
    def test_a_mesh_that_cannot_be_is_refused(self, words, said, capsys):
        assert main(["place", *words.split(), "--batch-size", "32"]) == 2
        assert re.search(re.escape(said), capsys.readouterr().err)
