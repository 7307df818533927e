"""Every fix that a message names works when it is followed: none is left out.

A message is a call with `fix=`. To add one, add a row to a table of `test_advice_*.py`.
"""

import ast
import re
from pathlib import Path

import pytest
import test_advice_adapters
import test_advice_buckets
import test_advice_calls
import test_advice_configs
import test_advice_files
import test_advice_filters
import test_advice_hosts
import test_advice_mixtures
import test_advice_own_data
import test_advice_packed
import test_advice_pictures
import test_advice_records
import test_advice_stores
import test_advice_transforms
from advice import Row, sites
from checkout import MODULES, ROOT

TABLES = (
    test_advice_adapters,
    test_advice_buckets,
    test_advice_calls,
    test_advice_configs,
    test_advice_files,
    test_advice_filters,
    test_advice_hosts,
    test_advice_mixtures,
    test_advice_own_data,
    test_advice_packed,
    test_advice_pictures,
    test_advice_records,
    test_advice_stores,
    test_advice_transforms,
)
ROWS: list[Row] = [row for table in TABLES for row in table.ROWS]

LOGS = "look in the logs of those processes for what they wait for; if they only need longer, set a"
ALIKE = "test_agreement.py::test_processes_that_differ_refuse_before_anything_is_read_or_moved"
FAILED = "test_agreement.py::test_no_process_waits_for_one_that_failed"
ENDED = "test_endings.py::test_whoever_waits_for_a_process_that_ended_hears_which_and_how"
SERVED = "test_processes.py::test_every_device_holds_its_rows_on_any_number_of_processes"
PREEMPTED = (
    "test_preemption.py::"
    "test_a_signal_to_one_process_stops_all_at_one_step_or_says_that_nobody_asks"
)
# Problem, fix, and why no row can follow it; a test that is named does, or shows who is told.
NOT_FOLLOWED = [
    (
        "service needs Ray, and Linux.",
        "install it, with pip install 'datarax-tfds[service]', or leave service out",
        "tests have Ray",
    ),
    (
        "worker ... is refused, because it has not shown that it gives the same batches.",
        "mend what the reason says, give it the same versions of libraries, functions and data as"
        " this process, and start it anew",
        "it is logged for the user of the cluster; test_service.py shows who is refused",
    ),
    (
        "no worker has started yet, so this process decodes alone. It goes on waiting.",
        "see with `ray status` which cores are free: other programs, or another service of this"
        " one, may have taken them all. Give all sources of a program the same service, or let more"
        " machines join the cluster",
        "it is logged; test_service_engine.py shows that a worker may come later",
    ),
    (
        "there is no connection to Ray, so this process decodes alone. It goes on trying.",
        "see with `ray status` whether the cluster runs and this machine belongs to it; if not, run"
        " ray start --address=HOST:PORT --num-cpus=0 here. If the cluster has a token, set"
        " RAY_AUTH_MODE=token here, too",
        "it is logged; test_service_ray.py stops a cluster, and starts it again",
    ),
    (
        "it is not the file that was lent.",
        "let that process write the file again",
        "rows come through Ray then; test_service.py shows it",
    ),
    (
        "the object store of ... has less room than what workers may have under way. Ray then"
        " writes to its disk.",
        "use ray start --object-store-memory=..., or RayService(object_store_bytes=...) for a"
        " cluster that is started here",
        "it is logged, and about speed",
    ),
    (
        "Ray is not installed.",
        "install it, with pip install 'datarax-tfds[service]'",
        "tests have Ray",
    ),
    (
        "there is no connection to a Ray cluster.",
        "let this machine join the cluster, with ray start --address=HOST:PORT --num-cpus=0. If"
        " the cluster has a token, set RAY_AUTH_MODE=token here, too",
        "test_service_ray.py runs the command on such a machine",
    ),
    (
        "the cluster takes orders from everybody who can reach its ports.",
        "set RAY_AUTH_MODE=token, run ray get-auth-token --generate, and copy ~/.ray/auth_token to"
        " all machines before ray start",
        "it would write into the home directory; test_service_ray.py uses a token",
    ),
    (
        "with eager parts, all parts must have fewer than 2**31 records together.",
        "use a TFDSStreamingSource for every part",
        "no test has an eager source beside so many records: it has the sizes only",
    ),
    (
        "...",
        "remove or rename the file or package that was found (pip uninstall sharding, if it was"
        " installed), then run pip install --force-reinstall --no-deps datarax-tfds",
        "it is raised while datarax_tfds is imported: test_other_sharding.py::"
        "test_another_package_called_sharding_is_named_with_its_file follows it",
    ),
    (
        "this version of datarax_tfds does not know the order in the log.",
        "use the version of datarax_tfds that wrote the log",
        "there is no other version that a test could use",
    ),
    (
        "the state was saved by a newer version of datarax_tfds.",
        "restore with the version that saved it, or a later one",
        "there is no later version that a test could use",
    ),
    (
        "an episode has another number of steps than the episodes that were looked at first.",
        "let map_fn turn the steps, a tf.data.Dataset there, into arrays of one shape",
        "test_feature_classes.py::"
        "test_an_episode_longer_than_those_looked_at_is_refused_where_it_is_read follows it",
    ),
    (
        "it cannot be used in a forked child, which lacks the threads of its parent.",
        "start processes with multiprocessing.get_context('spawn') and build the source there, or"
        " fork before JAX and TensorFlow are first used",
        "test_forks.py::test_a_spawned_child_reads_as_its_parent_does and"
        " test_forks.py::test_a_child_forked_before_either_is_used_reads_as_its_parent_does"
        " follow it",
    ),
    (
        "a forked child cannot ask the coordinator of the job.",
        "do this in the process that called initialize(); start others with"
        " multiprocessing.get_context('spawn')",
        "it takes several processes: test_endings.py::"
        "test_a_process_that_is_not_missed_disturbs_nobody raises it, and its parents agree",
    ),
    (
        "the address of the coordinator has no port.",
        "use an address like ...:8476, the same for every process",
        "it takes several processes:"
        " test_launchers.py::test_arguments_say_what_the_environment_does_not has such an address",
    ),
    (
        "it takes no more work, because it was closed.",
        "read before the interpreter exits: exit handlers cannot read records",
        "the process of the tests would have to exit",
    ),
    (
        "the interpreter exits, so no more records are read.",
        "read before the interpreter exits",
        "the process of the tests would have to exit",
    ),
    (
        "...",
        "pass the whole split on every process, as split='train': the source itself gives each"
        " process its rows, so leave out split_for_jax_process and slices by process",
        f"it takes several processes: {SERVED} follows it",
    ),
    (
        "...",
        "let map_fn and decoders use the same values on every process: draw random ones from a"
        " fixed seed, and sort what comes from a set",
        f"it takes several processes: {ALIKE} raises it, {SERVED} follows it",
    ),
    (
        "the processes do not agree on ....",
        "start every process with the same arguments, data and versions",
        f"it takes several processes: {ALIKE} raises it, {SERVED} follows it",
    ),
    (
        "not every process came here in time.",
        f"{LOGS} larger timeout_s in initialize()",
        f"it takes several processes: {ALIKE} raises it, and waits for one that is busy",
    ),
    (
        "... has failed.",
        "correct that error, and start the job again",
        f"it takes several processes, and a person: {ENDED} raises it",
    ),
    (
        "... has ended, and did not come here.",
        "let all processes take the same steps; the log of that process says why it ended first",
        f"it takes several processes: {ENDED} raises it, {SERVED} follows it",
    ),
    (
        "the coordinator of the job does not answer.",
        "call initialize() first; if that was done, look in the log of process 0, which runs the"
        " coordinator, for why it ended, and start the job again",
        f"it takes several processes: {SERVED} follows it",
    ),
    (
        "a forked child cannot ask the coordinator of the job.",
        "do this in the process that called initialize(); start others with"
        " multiprocessing.get_context('spawn')",
        "it takes several processes:"
        " test_endings.py::test_a_process_that_is_not_missed_disturbs_nobody raises it",
    ),
    (
        "process ... holds no device of the mesh.",
        "build the mesh over devices of every process, or leave this process out",
        f"it takes several processes: {SERVED} follows it",
    ),
    (
        "JAX could not join the other processes.",
        "correct that error; call initialize() before any other JAX call, and let every process"
        " reach host and port of process 0; if this process is alone on purpose, set"
        " JAX_NUM_PROCESSES=1 or call initialize(num_processes=1)",
        "it takes several processes: test_launchers.py::"
        "test_the_processes_of_a_launcher_find_each_other follows it",
    ),
    (
        "there are several processes, and no sharding says which rows are whose.",
        "pass sharding=batch_sharding(make_mesh({'data': -1}))",
        f"it takes several processes: {SERVED} follows it",
    ),
    (
        "as_numpy must be left out where several processes hold the rows of a batch.",
        "use local_batches(), which gives each process its own rows",
        f"it takes several processes: {SERVED} follows it",
    ),
    (
        "it has had no batch for ... s, and waits for other processes.",
        f"{LOGS} larger stall_timeout_s in initialize()",
        f"it takes several processes, and a person: {FAILED} raises it",
    ),
    (
        "no progress for ... s, because this process waits for one that has ended.",
        "let all processes take the same steps; the log of that process says why it ended first;"
        " if one step takes so long, set a larger timeout_s in initialize()",
        f"it takes several processes: {ENDED} raises it, {SERVED} follows it",
    ),
    (
        "it ends, because ... has failed.",
        "correct that error, and start the job again",
        f"it takes several processes, and a person: {ENDED} raises it",
    ),
    (
        "a process of this job received SIGTERM, and does not end: JAX takes the signal as a notice"
        " of preemption, and this program has built no Preemption that would stop it.",
        "build datarax_tfds.Preemption() and ask reached(step) at every step; or set"
        " JAX_ENABLE_PREEMPTION_SERVICE=0 before the start, so that SIGTERM ends the process;"
        " nothing is to be done if another library, such as Orbax, asks JAX for the notice",
        f"it takes several processes: {PREEMPTED} follows it",
    ),
]


def test_every_fix_of_a_message_is_followed():
    said = [(row.problem, row.fix) for row in ROWS]
    said += [(problem, fix) for problem, fix, _ in NOT_FOLLOWED]
    missing = [site for site in sites() if not any(site.says(*texts) for texts in said)]
    assert not missing, (
        "Nothing follows the fix of these messages. Add a Row to a table of tests/test_advice_*.py:"
        " what the message says, a call that raises it, and a call that does what its fix says. If"
        " no test can do that, add it to NOT_FOLLOWED in tests/test_advice.py, with the reason.\n"
        + "\n".join(map(str, missing))
    )


def test_no_row_is_left_of_a_message_that_is_gone():
    places = sites()
    said = [(row.problem, row.fix) for row in ROWS]
    said += [(problem, fix) for problem, fix, _ in NOT_FOLLOWED]
    # A message may also pass on the fix of another one, as that of a helper that map_fn calls.
    passed_on = {"TensorFlow cannot trace map_fn."}
    gone = [texts for texts in said if not any(site.says(*texts) for site in places)]
    assert [texts for texts in gone if texts[0] not in passed_on] == []


@pytest.mark.parametrize("reason", [reason for *_, reason in NOT_FOLLOWED])
def test_a_test_that_follows_a_fix_elsewhere_is_there(reason):
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", reason):
        assert f"def {name}(" in Path(__file__).with_name(file).read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_fix_is_always_passed_as_an_argument(path):
    """Where it stands in the text of a message, nobody would miss its row."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            assert not re.search(r"\bfix: ", str(node.value)), f"line {node.lineno}: {node.value}"
