"""How many inputs that cannot be are tried, over all the tables of them."""

import test_bad_calls
import test_bad_configs
import test_bad_files
import test_bad_states

MODULES = (test_bad_configs, test_bad_calls, test_bad_states, test_bad_files)


def counts() -> dict[str, int]:
    """The rows of the tables, by module: each is tried by at least one test."""
    return {module.__name__: sum(map(len, module.CASES)) for module in MODULES}


def test_at_least_300_bad_inputs_are_tried(figure):
    figure("bad inputs: right class and message", f"{sum(counts().values())} tried", "300")
    foreign = f"{len(test_bad_states.FOREIGN)} tried"
    figure("foreign states, each refused by its field", foreign, "100 %")
    assert sum(counts().values()) >= 300, counts()
