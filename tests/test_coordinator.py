"""What a thousand processes ask of JAX's coordinator, counted by a stand-in for it."""

import coordinator
import pytest

COUNT = 1000


@pytest.fixture(scope="module")
def phases():
    return coordinator.measured(COUNT, wait_s=2)


def test_a_thousand_processes_ask_at_most_once_a_second_each(phases):
    for phase, (requests, size) in phases.items():
        if phase.endswith("a second"):
            assert requests <= COUNT, phase
            assert size <= 1000 * COUNT, phase


def test_to_agree_to_end_and_to_fail_cost_each_process_a_few_short_requests(phases):
    for phase, (requests, size) in phases.items():
        if phase.endswith("each process"):
            assert requests < 4, phase
            assert size < 10_000, phase
