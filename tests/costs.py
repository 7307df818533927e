"""What tests cost, as measured: which are slow, which may not run beside each other.

`scripts/test --quick` leaves the slow ones out. A test is slow when it keeps a core busy for more
than about a second, or waits for long: most of these start processes, each of which imports JAX and
TensorFlow (5 s of a core), or compile large programs.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePath

import pytest
from xdist.scheduler import LoadScopeScheduling

# They start several processes at a time: many such tests at once would be slower than in turn.
# Those with Ray wait for long without using a core, and so run beside the others.
OF_RAY = {"test_service_faults", "test_service_ray"}
OF_PROCESSES = {
    "test_agreement",
    "test_bucketed_processes",
    "test_checkpoint_roles",
    "test_elastic",
    "test_endings",
    "test_environment",
    "test_examples",
    "test_forks",
    "test_cli_launch",
    "test_installed_launchers",
    "test_launchers",
    "test_packed_processes",
    "test_preparing",
    "test_processes",
    "test_store_processes",
    "test_train",
    "test_train_lm",
    "test_tutorial",
}

# Files, classes or tests; with True where the result may depend on the version of Python or of JAX,
# so that `.ci/run` runs them on a newer Python, too; with FEW where some rows of each show it.
FEW = "few"
SLOW = {
    "test_agreement.py": False,
    "test_block_order.py::test_an_epoch_holds_every_record_once_in_whatever_spans_it_comes": False,
    "test_bucket_order.py::test_an_epoch_is_that_of_the_rule_in_whatever_spans_it_comes": False,
    "test_bucketed.py::TestContract": False,
    "test_bucketed_processes.py": False,
    "test_checkpoint_roles.py": True,
    "test_cli.py": False,
    "test_cli_bench.py::test_each_number_of_cores_is_measured_in_a_process_of_its_own": False,
    "test_cli_docs.py": False,
    "test_cli_verify.py::test_sound_files_are_found_sound": False,
    "test_coordinator.py": False,
    "test_copying.py": False,
    "test_corrupt_records.py": False,
    "test_elastic.py": False,
    "test_endings.py": True,
    "test_environment.py": False,
    "test_evaluation.py::test_each_record_counts_once": True,
    "test_examples.py::test_keras_trains_alike_in_two_processes_and_after_a_resume": False,
    "test_examples.py::test_the_digits_are_learned": False,
    "test_examples.py::test_with_optax_a_run_ends_as_one_that_was_not_interrupted": False,
    "test_exchange.py": True,
    "test_feature_classes.py": False,
    "test_filter.py::TestContract": False,
    "test_filter.py::TestProcesses": False,
    "test_first_words.py::test_a_new_process_prints_no_notes_of_its_imports": True,
    "test_forks.py": True,
    "test_history.py": False,
    "test_installed_launchers.py": False,
    "test_interrupts.py": False,
    "test_jax_context.py": False,
    "test_jax_context.py::test_contexts_change_no_batch_of_two_processes": True,
    "test_killed_saves.py": False,
    "test_launchers.py::test_the_processes_of_a_launcher_find_each_other": True,
    "test_launchers.py::test_arguments_say_what_the_environment_does_not": True,
    "test_map_fn_results.py": FEW,
    "test_mixture.py": FEW,
    "test_mixture_order.py::test_each_record_is_that_of_the_rule_worked_out_one_by_one": False,
    "test_object_store.py": False,
    "test_packed.py": FEW,
    "test_pipeline.py::TestGrowing::test_a_run_resumes_after_every_batch": False,
    "test_preparing.py": False,
    "test_packed_processes.py": True,
    "test_packed_tokens.py::TestSources": False,
    "test_preemption.py": True,
    "test_processes.py::test_every_device_holds_its_rows_on_any_number_of_processes": FEW,
    "test_processes.py::test_others_wait_for_a_load_that_gets_on_and_not_for_one_that_hangs": False,
    "test_processes.py::test_a_process_that_holds_no_row_is_told_so_and_the_others_go_on": False,
    "test_processes.py::test_processes_read_from_a_store_what_they_read_from_a_disk": False,
    "test_processes.py::test_several_processes_need_a_sharding": False,
    "test_random_access.py::TestCopies::test_a_process_that_only_reads_starts_no_device": False,
    "test_random_access.py::TestGrain::test_its_processes_read_the_same_records": True,
    "test_random_access.py::test_the_processes_of_a_torch_loader_read_the_same_records": True,
    "test_repeatability.py": False,
    "test_repeatability.py::TestCodeOfAnotherRun::test_a_resume_with_other_values_warns": FEW,
    "test_scan.py": False,
    "test_scan.py::TestTraining": True,
    "test_second_try.py": False,
    "test_source.py::TestWithinPrograms": FEW,
    "test_service_faults.py": False,
    "test_service_ray.py": False,
    "test_store_processes.py": False,
    "test_stored_jobs.py": False,
    "test_token_rows.py::test_best_fit_pads_no_more_than_grain": False,
    "test_traced_uses.py": False,
    "test_trust.py::test_a_config_file_runs_nothing": False,
    "test_trust.py::test_a_run_from_data_to_restore_unpickles_and_starts_nothing": False,
    "test_tutorial.py": False,
    "test_streaming.py::TestEnd::test_the_interpreter_ends_at_once_and_quietly": True,
    "test_streaming.py::TestEnd::test_what_has_not_begun_is_left_when_it_ends": True,
    "test_streaming.py::test_a_low_limit_of_open_files_is_kept": False,
    "test_strata.py": False,
    "test_tfrecord_index.py::test_many_processes_may_build_it_at_once": False,
    "test_threads.py::test_the_interpreter_exits_quietly_whatever_is_under_way": True,
    "test_train.py": False,
    "test_train_configs.py::test_a_config_trains_on_random_records_of_its_dataset": False,
    "test_train_lm.py": False,
    "test_ways_to_take.py": False,
    "test_warmed.py": True,
    "test_wide_splits.py::test_an_audit_takes_memory_for_batches_and_not_for_records": False,
    "test_wide_tables.py": False,
}


def mark(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what the tables name, and puts what takes longest first, for pytest-xdist."""
    slow_groups, unused = set(), set(SLOW)
    for item in items:
        parts = _test(item).split("::")
        named = SLOW.keys() & {"::".join(parts[:count]) for count in range(1, len(parts) + 1)}
        unused -= named
        if named:
            item.add_marker(pytest.mark.slow)
            slow_groups.add(group(item.nodeid))
        if values := {SLOW[key] for key in named} - {False}:
            item.add_marker(pytest.mark.versions(rows=FEW if values == {FEW} else "all"))
    files = {item.path.name for item in items}
    gone = sorted(key for key in unused if key.partition("::")[0] in files)
    if gone and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"tests/costs.py names tests that are gone: {', '.join(gone)}")
    groups = {item: group(item.nodeid) for item in items}
    first = {"processes", "ray"}
    items.sort(key=lambda item: (groups[item] not in first, groups[item] not in slow_groups))


def of_all_rows(item: pytest.Item) -> bool:
    """Whether all rows of a test may depend on the version, so that `--rows` leaves none out."""
    marker = item.get_closest_marker("versions")
    return marker is not None and marker.kwargs["rows"] == "all"


def some_rows(node_ids: Iterable[str], most: int) -> set[str]:
    """Of each test with more parameters than `most`, that many, which are the same in each run.

    They are chosen by a hash: every nth would hit the same value of an inner parameter each time.
    """
    rows = defaultdict(list)
    for node_id in node_ids:
        rows[node_id.partition("[")[0]].append(node_id)
    by_hash = lambda node_id: zlib.crc32(node_id.encode())
    return {row for test in rows.values() for row in sorted(test, key=by_hash)[:most]}


def group(node_id: str) -> str:
    """The tests that run on one worker: those of a file share sources."""
    file = PurePath(node_id.partition("::")[0]).stem
    return "ray" if file in OF_RAY else "processes" if file in OF_PROCESSES else file


class ByGroup(LoadScopeScheduling):
    """Keeps a group on one worker. `--dist loadgroup` alone does so only before pytest 9.2, and
    says nothing: https://github.com/pytest-dev/pytest-xdist/issues/1386.
    """

    assert hasattr(LoadScopeScheduling, "_split_scope"), "nothing would call the method below"

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def _test(item: pytest.Item) -> str:
    """File, class and name, without parameters."""
    return item.nodeid.partition("[")[0].rpartition("tests/")[2]
