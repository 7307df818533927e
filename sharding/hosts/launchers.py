"""What the variables of launchers say about the job that this process belongs to.

JAX's own detection comes first: see `joining.py`. This module adds the launchers that JAX does not
know, and finds every sign of several processes, so that none of them trains alone unnoticed.
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

_PORT = 8476  # of the coordinator, where a launcher names the host of process 0 only
_MAX_SHOWN = 100  # characters of a value, in messages


@dataclass(frozen=True)
class Launch:
    """What a launcher says about this process; None stands for what it does not say.

    Args:
        sign: The variable that shows it, with its value, as "WORLD_SIZE=8".
        count: The processes of the job. None: there are several, but it is not known how many.
        process: The number of this process.
        coordinator: Where process 0 runs the coordinator, as "host:port".
        local_process: The number of this process among those on its node.
        local_count: The processes on this node.
        is_mpi: Whether mpi4py can find out the rest.
        is_for_jax: Whether it is said to JAX programs in particular, so that it decides.
    """

    sign: str
    count: int | None
    process: int | None = None
    coordinator: str | None = None
    local_process: int | None = None
    local_count: int | None = None
    is_mpi: bool = False
    is_for_jax: bool = False


@dataclass(frozen=True)
class _Variables:
    """The names of a launcher's variables; "" for those that it does not set."""

    count: str
    process: str
    local_process: str = ""
    local_count: str = ""
    host: str = ""  # of process 0; the first one, if it is a list
    port: str = ""
    is_mpi: bool = False

    def launch(self) -> Launch | None:
        count = _number(self.count) or None  # 0 processes are a mistake
        is_for_jax = self.host == _ADDRESS
        shown = [self.count, self.host]
        # A single process has number 0, too, but nobody would say so to JAX.
        if count is None and _is_above(-1 if is_for_jax else 0, _value(self.process)):
            shown.insert(1, self.process)
        sign = next((name for name in shown if _value(name)), None)
        if sign is None:
            return None
        return Launch(
            _shown(sign),
            count,
            _number(self.process),
            self._coordinator(),
            _number(self.local_process),
            _number(self.local_count),
            self.is_mpi,
            is_for_jax,
        )

    def _coordinator(self) -> str | None:
        host = next(iter(_value(self.host).split()), None)
        if host is None or self.host == _ADDRESS:
            return host
        port = _number(self.port)
        # torchrun has a server of its own on the port that it names.
        return _address(host, _PORT if port is None else port + 1)


_ADDRESS = "JAX_COORDINATOR_ADDRESS"


def _mpi(prefix: str) -> _Variables:
    ranks = (f"{prefix}_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"))
    return _Variables(*ranks, is_mpi=True)


# The innermost first: mpiexec and torchrun may have been started by Slurm or in a pod.
_VARIABLES = (
    _Variables("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", host=_ADDRESS),
    _Variables("NUM_PROCESSES", "PROCESS_ID", "", "", "COORDINATOR_ADDRESS", "COORDINATOR_PORT"),
    _Variables(
        "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    ),
    _mpi("OMPI_COMM_WORLD"),
    _mpi("MV2_COMM_WORLD"),
    _mpi("JSM_NAMESPACE"),
    _Variables("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", is_mpi=True),
    _Variables("PALS_SIZE", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", is_mpi=True),
    _mpi("HOROVOD"),
    _Variables("FLUX_JOB_SIZE", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID"),
    _Variables("LWS_GROUP_SIZE", "LWS_WORKER_INDEX", host="LWS_LEADER_ADDRESS"),
    _Variables("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", host="SKYPILOT_NODE_IPS"),
    _Variables("AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX"),
)


def launches() -> list[Launch]:
    """What each launcher says whose variables are set, the innermost first."""
    found = [variables.launch() for variables in _VARIABLES]
    found += [_slurm_step(), _sagemaker(), _tensorflow("TF_CONFIG"), _tensorflow("CLUSTER_SPEC")]
    return [launch for launch in found if launch is not None]


def expected_processes() -> tuple[str | None, int]:
    """The first sign of several processes, and how many there are at least; `(None, 1)` if none."""
    found = launches()
    for launch in found:
        if launch.is_for_jax and launch.count == 1:
            break
        if launch.count != 1:
            return launch.sign, launch.count or 2
    sign = None if found else sign_of_several()
    return sign, 1 if sign is None else 2


def sign_of_several() -> str | None:
    """A variable that stands for several processes, where no launcher says how many; or None."""
    for shows, names in _SIGNS:
        for name in names:
            if shows(_value(name)):
                return _shown(name)
    return None


def index_in_kubernetes_job() -> int | None:
    """The number of this pod in an indexed Job, whose pods are not told how many they are."""
    return _number("JOB_COMPLETION_INDEX")


def _slurm_step() -> Launch | None:
    # Outside of a step, SLURM_NTASKS says only how many processes `srun` would start.
    count = "SLURM_STEP_NUM_TASKS"
    if _value("SLURM_STEP_NODELIST") and not _value(count):
        count = "SLURM_NTASKS"
    found = _Variables(count, "SLURM_PROCID", "SLURM_LOCALID").launch()
    return found and replace(found, local_count=_slurm_tasks_on_this_node(found.count))


def _slurm_tasks_on_this_node(tasks: int | None) -> int | None:
    """From the tasks of each node, as "2(x3),1"; without it, 1 if there is a node for each task."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", _value("SLURM_STEP_TASKS_PER_NODE"))
    of_nodes = [int(each) for each, times in parts for _ in range(int(times or 1))]
    node = _number("SLURM_NODEID") or 0
    if node < len(of_nodes):
        return of_nodes[node]
    nodes = _number("SLURM_STEP_NUM_NODES") or _number("SLURM_NNODES")
    return 1 if nodes is not None and nodes == tasks else _number("SLURM_NTASKS_PER_NODE")


def _sagemaker() -> Launch | None:
    name, here = "SM_HOSTS", _value("SM_CURRENT_HOST")
    if not _value(name):
        return None
    try:
        hosts = sorted(json.loads(_value(name)))
        coordinator = _address(hosts[0], _PORT)
    except (ValueError, TypeError, LookupError):
        return Launch(_shown(name), None)
    return Launch(
        _shown(name), len(hosts), hosts.index(here) if here in hosts else None, coordinator
    )


def _tensorflow(name: str) -> Launch | None:
    """What a description of a cluster says that TensorFlow, or Vertex, defines."""
    if not _value(name):
        return None
    try:
        said = json.loads(_value(name))
        cluster = said.get("cluster")
        if not cluster:  # as TensorFlow takes it for one process
            return None
        task = said["task"]
        roles = sorted(
            cluster.keys() - {"ps", "evaluator"},
            key=lambda role: (role not in ("chief", "master"), role),
        )
        places = [(role, index) for role in roles for index in range(len(cluster[role]))]
        here = task["type"], int(task["index"])
        host, _, port = cluster[roles[0]][0].rpartition(":")
        if not port.isdecimal():  # as "host" or "[fe80::1]"
            host, port = cluster[roles[0]][0], ""
    except (ValueError, TypeError, LookupError, AttributeError):
        return Launch(_shown(name), None)
    return Launch(
        _shown(name),
        len(places),
        places.index(here) if here in places else None,
        _address(host, int(port or _PORT)),
    )


def _is_above(limit: int, value: str) -> bool:
    """Whether a value is a greater number, as "4" or "1:4"; any other text counts as one."""
    value = value.rpartition(":")[2]
    return bool(value) and not (value.isdecimal() and int(value) <= limit)


def _hosts_in(value: str) -> set[str]:
    return {part for part in re.split(r"[\s,]+", value) if part and not part.isdecimal()}


def _hosts_in_file(path: str) -> set[str]:
    """The first word of each line; none if the file is not visible here, as in a container."""
    with suppress(OSError):
        lines = Path(path).read_text().splitlines() if path else []
        return {line.split()[0] for line in lines if line.strip()}
    return set()


# What a value must be to stand for several processes, and the variables for which this holds.
_SIGNS: tuple[tuple[Callable[[str], bool], tuple[str, ...]], ...] = (
    (
        lambda value: _is_above(1, value),
        (
            "SLURM_NTASKS",
            "SLURM_NPROCS",
            "SLURM_NTASKS_PER_NODE",
            "SLURM_JOB_NUM_NODES",
            "SLURM_NNODES",
            "MEGASCALE_NUM_SLICES",
            "GROUP_WORLD_SIZE",
            "PET_NNODES",
            "PBS_NUM_NODES",
            "NHOSTS",
            "AZUREML_NODE_COUNT",
        ),
    ),
    (
        lambda value: _is_above(0, value),
        (
            "MEGASCALE_SLICE_ID",
            "TPU_WORKER_ID",
            "CLOUD_TPU_TASK_ID",
            "GROUP_RANK",
            "NODE_RANK",
            "PET_NODE_RANK",
            "LSF_PM_TASKID",
        ),
    ),
    (
        lambda value: len(_hosts_in(value)) > 1,
        ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "LSB_MCPU_HOSTS", "LSB_HOSTS"),
    ),
    (lambda value: len(_hosts_in_file(value)) > 1, ("PBS_NODEFILE", "PE_HOSTFILE")),
    # The slots of one host usually are the cores of one process.
    (
        lambda value: _is_above(1, value) and not _value("LSB_MCPU_HOSTS"),
        ("LSB_DJOB_NUMPROC",),
    ),
    (
        lambda value: bool(value) and not _value("MEGASCALE_NUM_SLICES"),
        ("MEGASCALE_COORDINATOR_ADDRESS",),
    ),
    (bool, ("TPU_PROCESS_ADDRESSES_PATH", "JOB_COMPLETION_INDEX", "PALS_RANKID", "PMIX_RANK")),
)


def _value(name: str) -> str:
    return os.environ.get(name, "").strip() if name else ""


def _number(name: str) -> int | None:
    value = _value(name)
    return int(value) if value.isdecimal() else None


def _shown(name: str) -> str:
    value = _value(name)
    return f"{name}={value[:_MAX_SHOWN]}{'...' if len(value) > _MAX_SHOWN else ''}"


def _address(host: str, port: int) -> str:
    wanted = _number("JAX_COORDINATOR_PORT")  # JAX's own variable for it
    is_ipv6 = ":" in host and not host.startswith("[")
    return f"{f'[{host}]' if is_ipv6 else host}:{min(port, 65535) if wanted is None else wanted}"
