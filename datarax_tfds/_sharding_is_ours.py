"""Checks that `import sharding` finds our package: the registry has another one of that name.

`datarax_tfds/__init__.py` imports this, before any module that needs `sharding`.
"""

import importlib.util

_OURS = "from sharding.placement import"  # stands in our sharding/__init__.py


def _refusal(*, found: object, fix: str) -> ImportError:
    # Not worded by `sharding.checks`, as our other messages are: it may be missing.
    facts = {"found": found, "fix": fix}
    return ImportError(
        "datarax_tfds: the package 'sharding' that Python finds is not the one that was installed"
        " with datarax_tfds."
        + "".join(f"\n  {name + ':':<6} {value}" for name, value in facts.items())
    )


def _check() -> None:
    spec = importlib.util.find_spec("sharding")
    find_source = getattr(spec and spec.loader, "get_source", None)
    source = find_source("sharding") if find_source else ""
    # The source is None in an installation that holds compiled files only.
    if spec is None or (source is not None and _OURS not in source):
        folders = None if spec is None else spec.submodule_search_locations
        error = _refusal(
            found=(spec and spec.origin) or ", ".join(folders or ["no package of this name"]),
            fix="remove or rename the file or package that was found (pip uninstall sharding, if it"
            " was installed), then run pip install --force-reinstall --no-deps datarax-tfds",
        )
        raise error


_check()
