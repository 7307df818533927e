"""The one form of every error message: what is wrong, the values, the remedy."""


def explain(subject: str, problem: str, *, fix: str, **facts: object) -> str:
    """Words an error message.

        explain("batch_sharding", "the mesh has no axis 'dta'.", axes="data, model", fix="...")

        batch_sharding: the mesh has no axis 'dta'.
          axes: data, model
          fix:  ...

    Args:
        subject: What refuses: a function, a source, a file.
        problem: One sentence.
        fix: What to do about it.
        **facts: The values that show the problem, in the order to print them.
    """
    rows = facts | {"fix": fix}
    width = max(map(len, rows)) + 1
    # A value of several lines stays in its column.
    column = "\n" + " " * (width + 3)
    lines = [
        f"  {name + ':':<{width}} {column.join(str(value).splitlines())}"
        for name, value in rows.items()
    ]
    return "\n".join([f"{subject}: {problem}", *lines])
