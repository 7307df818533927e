"""`datarax-tfds prepare`: a dataset of one's own is prepared once."""

import pytest

from datarax_tfds.cli import main

CODE = """
import numpy as np
import tensorflow_datasets as tfds


class {class_name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({{"number": np.int32}})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {{"train": ((n, {{"number": n}}) for n in range(5))}}

    def _generate_examples(self):
        raise NotImplementedError
"""


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_dataset_of_a_file_is_prepared_once(file_format, tmp_path, capsys):
    name = f"of_a_file_{file_format}"  # TFDS knows it for the rest of this process
    code = tmp_path / f"{name}_code.py"
    code.write_text(CODE.format(class_name=name.title().replace("_", "")))
    words = ["prepare", name, "--data-dir", str(tmp_path), "--file-format", file_format]
    assert main(words) == 2  # TFDS does not know it yet
    assert "TFDS knows none of that name" in capsys.readouterr().err
    assert main([*words, "--code", str(code)]) == 0
    place = tmp_path / name / "1.0.0"
    said = f"{name}/1.0.0 in {place}: 5 records of train\n"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (said, "")
    (file,) = place.glob(f"*{file_format}-*")
    written = file.stat().st_mtime_ns
    assert main(words) == 0
    assert capsys.readouterr().out == said
    assert file.stat().st_mtime_ns == written


def test_what_cannot_be_prepared_is_refused(tmp_path, capsys):
    assert main(["prepare", str(tmp_path)]) == 2
    assert "give the name of a dataset" in capsys.readouterr().err
    assert main(["prepare", "mnist", "--code", str(tmp_path / "none.py")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
