"""The audit proves what was delivered, and is itself proved: wrong sources and logs are caught."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import shardings
from contract import N, ids
from flax import nnx

from datarax_tfds import (
    CursorLog,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    audit,
)
from datarax_tfds.cli import main
from datarax_tfds.history.logged_orders import logged_order

SIZE = 24


@pytest.fixture(scope="module")
def sources(data_dir):
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir), "shuffle": True}
    mesh = shardings()["8 devices"]
    return {
        "eager": TFDSEagerSource(TFDSEagerConfig(**fields), sharding=mesh),
        "streaming": TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=mesh),
        "blocks": TFDSStreamingSource(
            TFDSStreamingConfig(access="sequential", shuffle_buffer_size=30, **fields),
            sharding=mesh,
        ),
    }


@pytest.fixture(params=["eager", "streaming", "blocks"])
def source(request, sources):
    return nnx.clone(sources[request.param])


def run(path, source, steps, *, size=SIZE, remainder="wrap", state=None, wrong=lambda rows: rows):
    """Some steps of a run, with what it notes; returns its last state."""
    pipeline = Pipeline(
        source=source.clone(), batch_size=size, remainder=remainder, record_numbers=True
    )
    if state is not None:
        pipeline.set_state(state)
    log = CursorLog(path, pipeline)
    for _ in range(steps):
        batch = pipeline.step()
        log.note(jax.device_put(wrong(np.asarray(batch["record_number"]))))
    return pipeline.get_state()


def audited(*paths):
    return audit(*(path.read_text().splitlines(keepends=True) for path in paths))


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
def test_a_history_of_restores_and_batch_sizes_is_sound(source, tmp_path, remainder):
    path = tmp_path / "log"
    state = run(path, source, 3, remainder=remainder)
    run(path, source, 4, remainder=remainder, state=state)  # is rolled back:
    state = run(path, source, 2, remainder=remainder, size=8, state=state)
    with path.open("a") as file:
        file.write('{"run": "cut by a ki')
    state = run(path, source, 8, remainder=remainder, size=16, state=state)
    run(path, source, 2, remainder=remainder, size=[(0, 8), (194, 16)], state=state)
    found = audited(path)
    assert found.sound, found
    assert found.runs == 5
    assert found.reached.epoch == 2
    assert bool(found.left_out) is (remainder == "drop")
    assert "each record was delivered once" in str(found)
    assert main(["audit", str(path)]) == 0


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("drops one", lambda rows: np.append(rows[1:], rows[0] + 1)),
        ("repeats one", lambda rows: np.append(rows[:1], rows[:-1])),
        ("swaps two", lambda rows: rows[[1, 0, *range(2, len(rows))]]),
        ("gives the rows of another host", lambda rows: np.tile(rows[: len(rows) // 2], 2)),
        ("shifts by a row", lambda rows: np.roll(rows, 1)),
    ],
)
def test_a_source_that_is_wrong_is_caught(source, tmp_path, capsys, fault, wrong):
    run(tmp_path / "log", source, 3, wrong=wrong)
    found = audited(tmp_path / "log")
    assert not found.sound, fault
    assert len(found.wrong) == 3
    assert "not [" in str(found)
    assert main(["audit", str(tmp_path / "log")]) == 1
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "log"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["sound"] is False
    assert printed["reached"] == {"epoch": found.reached.epoch, "index": found.reached.index}
    assert printed["wrong"] == list(found.wrong)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def dump(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_source_that_shifts_by_a_batch_is_caught(source, tmp_path):
    path = tmp_path / "log"
    run(path, source, 3)
    begins, *notes = lines_of(path)
    rows = [note["rows"] for note in notes]
    for note, other in zip(notes, rows[1:] + rows[:1], strict=True):
        note["rows"] = other
    dump(path, [begins, *notes])
    assert len(audited(path).wrong) == 3


def test_a_restore_beyond_what_was_delivered_has_lost_records(source, tmp_path, capsys):
    path, other = tmp_path / "log", tmp_path / "other"
    run(path, source, 1)
    state = run(other, source, 3)
    run(path, source, 1, state=state)
    found = audited(path)
    assert [tuple(span) for span in found.lost] == [(0, SIZE, 3 * SIZE)]
    pipeline = Pipeline(source=source.clone(), batch_size=SIZE)
    first, second, third = (ids(pipeline.step()) for _ in range(3))
    assert found.numbers(found.lost[0]) == second + third
    assert set(found.numbers(found.lost[0])).isdisjoint(first)
    assert "lost: 48 records" in str(found)
    assert main(["audit", str(path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["lost"] == [{"epoch": 0, "start": SIZE, "stop": 3 * SIZE}]


@pytest.mark.parametrize("at", [[0, SIZE + 1], [0, 2 * SIZE - 1], [0, 1], [0, 0]])
def test_a_place_where_no_batch_ends_is_caught(source, tmp_path, at):
    path = tmp_path / "log"
    run(path, source, 3)
    begins, first, second, third = lines_of(path)
    second["at"] = at
    dump(path, [begins, first, second, third])
    assert not audited(path).sound


def test_processes_that_noted_different_places_are_caught(source, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    run(one, source, 3)
    begins, first, second, _ = lines_of(one)
    dump(other, [begins, first, second])
    assert audited(one, other).sound  # one was killed earlier
    second["at"] = [0, 3 * SIZE]
    dump(other, [begins, first, second])
    assert "where another has" in audited(one, other).wrong[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[1:], "KeyError"),
        (lambda lines: [lines[0], {"run": lines[0]["run"]}], "KeyError: 'at'"),
        (lambda lines: [lines[0], {**lines[1], "at": [1]}, {**lines[1], "at": "x"}], "Error"),
        (
            lambda lines: [{**lines[0], "begins": {**lines[0]["begins"], "format": 2}}],
            "KeyError: 2",
        ),
        (
            lambda lines: [
                {
                    **lines[0],
                    "begins": {
                        **lines[0]["begins"],
                        "state": {**lines[0]["begins"]["state"], "index": 24},
                    },
                }
            ],
            "checksum",
        ),
        (lambda lines: ["[]", lines[0]], "Error"),
        (lambda lines: [], "no run"),
    ],
)
def test_lines_that_no_cursor_log_wrote_are_refused(source, tmp_path, capsys, edit, message):
    path = tmp_path / "log"
    run(path, source, 1)
    dump(path, edit(lines_of(path)))
    with pytest.raises(ValueError, match=rf"audit(.|\n)*{message}(.|\n)*fix:"):
        audited(path)
    assert main(["audit", str(path)]) == 2
    assert "fix:" in capsys.readouterr().err


def test_a_damaged_line_in_the_midst_is_refused(source, tmp_path):
    path = tmp_path / "log"
    run(path, source, 3)
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:-1], text[-1][:-9], text[-1]]))
    with pytest.raises(ValueError, match=r"line:(.|\n)*fix:"):
        audited(path)


def test_logs_of_different_orders_are_refused(source, tmp_path):
    run(tmp_path / "one", source, 1)
    other = source.copy(config=dataclasses.replace(source.config, seed=9))
    run(tmp_path / "other", other, 1)
    with pytest.raises(ValueError, match=r"differ in seed(.|\n)*42 and 9(.|\n)*fix:"):
        audited(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("parts", [None, [["web", 97, 1, 1]]])
def test_an_order_of_a_later_version_is_refused(source, parts):
    state = source.get_state() | {"order": "spirals, 1"}
    with pytest.raises(ValueError, match=r"does not know the order in the log(.|\n)*fix:"):
        logged_order(state, parts)


class TestRecordNumbers:
    def batches(self, pipeline, steps):
        return [jax.tree.map(np.asarray, pipeline.step()) for _ in range(steps)]

    @pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
    def test_they_are_those_of_the_rows(self, source, remainder):
        pipeline = Pipeline(
            source=source.clone(),
            stages=[lambda batch: {"id": batch["id"] + 0}],
            batch_size=SIZE,
            remainder=remainder,
            record_numbers=True,
        )
        seen = []
        for batch in self.batches(pipeline, 6):
            real = batch["record_number"] >= 0
            assert np.array_equal(batch["record_number"][real], batch["id"][real])
            assert not batch["id"][~real].any()
            seen += batch["record_number"][real].tolist()
        assert len(set(seen[: N - N % SIZE])) == N - N % SIZE

    @pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
    def test_all_three_speeds_agree(self, sources, remainder):
        def make():
            return Pipeline(
                source=sources["eager"].clone(),
                batch_size=SIZE,
                remainder=remainder,
                record_numbers=True,
            )

        stepped = [batch["record_number"] for batch in self.batches(make(), 6)]
        scanned = make().scan(lambda batch: batch["record_number"], length=6)
        assert np.array_equal(np.asarray(scanned), stepped)
        pipeline, step = make(), nnx.jit(lambda pipeline: pipeline.step()["record_number"])
        assert np.array_equal([np.asarray(step(pipeline)) for _ in range(6)], stepped)

    def test_a_feature_of_that_name_is_refused(self, source):
        mapped = source.copy(
            config=dataclasses.replace(
                source.config, map_fn=lambda record: {"record_number": record["id"]}
            )
        )
        with pytest.raises(ValueError, match=r"'record_number' would be added(.|\n)*fix:"):
            Pipeline(source=mapped, batch_size=SIZE, record_numbers=True)
        Pipeline(source=mapped, batch_size=SIZE)
