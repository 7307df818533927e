"""`datarax-tfds audit`: checks from cursor logs that each record was delivered once."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from datarax_tfds.cli.terminal import doing, print_json, wrong_usage

if TYPE_CHECKING:  # it takes seconds, and the command says so before
    from datarax_tfds.history.audit import Audit


@dataclass(frozen=True)
class Command:
    """Checks from cursor logs that each record of each epoch was delivered exactly once.

    Ends with 1 if a record was not.

    Args:
        logs: The paths that CursorLog was given, also gs:// and s3://; process 0's first.
        json: Print JSON.
    """

    logs: Annotated[Positional[tuple[str, ...]], arg(metavar="LOG [LOG ...]")]
    json: bool = False

    def run(self) -> int:
        if not self.logs:
            problem = "give the paths of the cursor logs, as runs/cursors-*.jsonl"
            return wrong_usage("audit", problem)
        doing("importing JAX, and reading the logs")
        from datarax_tfds.history.audit import audit
        from datarax_tfds.history.log_files import log_lines

        found = audit(*map(log_lines, self.logs), subject="datarax-tfds audit")
        if self.json:
            print_json(_in_json(found))
        else:
            sys.stdout.write(f"{found}\n")
        return 0 if found.sound else 1


def _in_json(found: "Audit") -> dict[str, Any]:
    """The fields of an audit in JSON types, without the order."""
    spans = {name: getattr(found, name) for name in ("lost", "twice", "left_out", "replaced")}
    return {
        "sound": found.sound,
        "runs": found.runs,
        "records": found.records,
        "reached": asdict(found.reached),
        **{name: [each._asdict() for each in some] for name, some in spans.items()},
        "wrong": list(found.wrong),
    }
