"""`datarax-tfds prepare`: has TFDS download and prepare a dataset, by one process."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.terminal import (
    doing,
    import_tensorflow,
    print_dataset,
    quiet_tfds,
    wrong_usage,
)
from datarax_tfds.cli.user_code import imported_code


@dataclass(frozen=True)
class Command:
    """Has TFDS download and prepare a dataset, unless that is done already.

    If several processes do so at once, also as part of a job, one prepares it while the others
    wait.

    Args:
        code: A Python file that defines the dataset, if TFDS does not know it. It is run.
        file_format: The format of the files. By default, tfrecord.
        beam_workers: How many processes of Apache Beam to use, for a dataset that needs it.
    """

    dataset: Dataset
    code: Annotated[Path | None, arg(metavar="FILE")] = None
    file_format: Literal["tfrecord", "array_record"] | None = None
    beam_workers: Annotated[int | None, arg(metavar="N")] = None

    def run(self) -> int:
        if self.dataset.is_directory:
            return wrong_usage("prepare", "give the name of a dataset, and --data-dir")
        import_tensorflow()
        from datarax_tfds.files.preparing import prepared_dataset

        options = {} if self.file_format is None else {"file_format": self.file_format}
        config = replace(
            self.dataset.config(),
            local_files_only=False,
            beam_num_workers=self.beam_workers,
            download_and_prepare_kwargs=options,
        )
        doing(f"preparing {self.dataset.dataset}")
        with imported_code(self.code), quiet_tfds():
            prepared = prepared_dataset(config)
        counts = {name: split.num_examples for name, split in prepared.info.splits.items()}
        print_dataset(prepared.info.full_name, prepared.directory, counts)
        return 0
