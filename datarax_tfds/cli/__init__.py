"""The command `datarax-tfds`: tools for datasets, jobs and training logs.

Each command is a module of this folder with a dataclass `Command`: its fields are the words and
options of the command, which tyro parses, and its method `run` returns the exit status. Only the
module of the command that was asked for is imported. The list of commands is printed without tyro,
which takes 0.2 s to import, and no help imports JAX.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

commands = {  # by name, what each does, in the order in which they are needed
    "prepare": "have TFDS download and prepare a dataset",
    "convert": "make a dataset of a folder of images, or of CSV files",
    "fill": "write random records with the features of a real dataset, to try a program with",
    "info": "print the splits and features of a dataset, as a source hands them out",
    "show": "draw records of a dataset: images with labels and boxes, or texts",
    "index": "build the indexes that the TFRecord files of a dataset lack, so that no job has to",
    "verify": "verify every checksum of every record, and name the damaged records",
    "bench": "measure how many records a second a stream delivers on 1 to n cores",
    "workers": "show who decodes for training jobs, on a Ray cluster",
    "place": "print or draw which host and device holds which rows of a batch, on any mesh",
    "launch": "run a command as several JAX processes on this machine",
    "audit": "check from cursor logs that each record of each epoch was delivered exactly once",
}
_USAGE = "usage: datarax-tfds [--version] COMMAND ...\n"
_STATUSES = """\
A command ends with 0 if all is well; with 1 if it found what it looks for, such as damage; and with
2 if the command line is wrong, or if something cannot be read.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        words: The arguments; by default, those of the process.

    Returns:
        The exit status: that of the command, or 2 if the command line is wrong, or if the library
        refuses something. Its message is then printed without a traceback.
    """
    name, *others = list(sys.argv[1:] if words is None else words) or [""]
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if name == "--version":
        from datarax_tfds import __version__

        sys.stdout.write(f"datarax-tfds {__version__}\n")
        return 0
    if name not in commands:
        sys.stderr.write(_USAGE + _unknown(name))
        return 2
    return _run(name, others)


def _run(name: str, words: list[str]) -> int:
    import tyro

    command = importlib.import_module(f"datarax_tfds.cli.{name}").Command
    try:
        parsed = tyro.cli(
            command,
            args=words,
            prog=f"datarax-tfds {name}",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except SystemExit as end:  # after the help, or what is wrong with the words, was printed
        return int(end.code or 0)
    try:
        return parsed.run()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Looked up, because importing it would import JAX. Without it, no error has a fix.
        checks = sys.modules.get("sharding.checks")
        if checks is not None and checks.fix_of(error) is not None:
            sys.stderr.write(f"{error}\n")
        elif isinstance(error, OSError):
            sys.stderr.write(f"datarax-tfds {name}: {error}\n")
        else:
            raise  # a fault of the program, which needs its traceback
        return 2


def _help() -> str:
    width = max(map(len, commands))
    lines = "".join(f"  {name:<{width}}  {text}\n" for name, text in commands.items())
    return (
        f"{_USAGE}\nTools for datasets, jobs and training logs.\n\n{lines}\n"
        f"datarax-tfds COMMAND --help lists the options of a command.\n{_STATUSES}"
    )


def _unknown(name: str) -> str:
    there = f"the commands are {', '.join(commands)}"
    if not name:
        return f"datarax-tfds: a command is missing; {there}\n"
    # Not `sharding.checks.nearest`, which would import JAX for a misspelled word.
    near = difflib.get_close_matches(name.lower(), commands, n=1)
    meant = f"did you mean {near[0]}?" if near else there
    return f"datarax-tfds: there is no command {name!r}; {meant}\n"
