"""`datarax-tfds audit`: checks from cursor logs that each record was delivered once."""

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from datarax_tfds.cli.terminal import doing, wrong_usage


@dataclass(frozen=True)
class Command:
    """Checks from cursor logs that each record of each epoch was delivered exactly once.

    Ends with 1 if a record was not.

    Args:
        logs: The paths that CursorLog was given, also gs:// and s3://; process 0's first.
    """

    logs: Annotated[Positional[tuple[str, ...]], arg(metavar="LOG [LOG ...]")]

    def run(self) -> int:
        if not self.logs:
            problem = "give the paths of the cursor logs, as runs/cursors-*.jsonl"
            return wrong_usage("audit", problem)
        doing("importing JAX, and reading the logs")
        from datarax_tfds.history.audit import audit
        from datarax_tfds.history.log_files import log_lines

        found = audit(*map(log_lines, self.logs), subject="datarax-tfds audit")
        sys.stdout.write(f"{found}\n")
        return 0 if found.sound else 1
