"""Every launcher: its processes find each other, or an error names the sign that they exist."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import pytest
from checkout import GUARD_S, WORKERS
from refusals import refused

from datarax_tfds.cli import launching
from sharding import initialize
from sharding.hosts.job import job
from sharding.hosts.processes import require_all_processes

OF_LAUNCHERS = (
    *("JAX_COORD", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "WORLD_SIZE"),
    *("RANK", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI", "MV2_", "MPI_LOCAL", "PALS_", "JSM_"),
    *("TPU_WORKER", "TPU_PROCESS_A", "MEGASCALE_", "SM_", "TF_CONFIG", "CLUSTER_SPEC", "LSB_"),
    *("PBS_", "PE_HOSTFILE", "NHOSTS", "FLUX_", "LWS_", "SKYPILOT_", "AWS_BATCH", "HOROVOD_"),
    *("JOB_COMPLETION_INDEX", "KUBERNETES_", "PET_", "GROUP_", "NODE_RANK", "AZUREML_NODE"),
    *(
        "NUM_PROCESSES",
        "PROCESS_ID",
        "COORDINATOR_",
        "CUDA_VISIBLE_DEVICES",
        "CLOUD_TPU",
        "TPU_SKIP",
    ),
)


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables of a launcher, and none of the launcher that may run the tests."""
    for name in list(os.environ):
        if name.startswith(OF_LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(job, "is_complete", False)
    return lambda given: [monkeypatch.setenv(name, value) for name, value in given.items()]


def cluster_spec(role, other, number, port, host="127.0.0.1"):
    places = {role: [f"{host}:{port}"], other: ["127.0.0.1:1"]}
    return json.dumps({"cluster": places, "task": {"type": [role, other][number], "index": 0}})


# Variables that stand for several processes, and do not say how to join them. The sign, as the
# message names it, is the first one.
SIGNS = {
    "torchrun, without an address": {"WORLD_SIZE": "8", "RANK": "3"},
    "a rank without a size": {"RANK": "1"},
    "a size in words": {"JAX_NUM_PROCESSES": "two"},
    "an address without a count": {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"},
    "no processes": {"JAX_NUM_PROCESSES": "0", "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"},
    "no processes of torchrun": {"WORLD_SIZE": "0", "RANK": "0"},
    "the number of a process alone": {"JAX_PROCESS_ID": "0"},
    "a count without an address": {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    "torch's address without a count": {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
    "Slurm, outside of a step": {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},
    "Slurm, tasks of each node": {"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "7"},
    "Slurm, several nodes": {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"},
    "Slurm, a step without its nodes": {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
    "Slurm, with words": {"SLURM_STEP_NUM_TASKS": "four"},
    "Open MPI 5": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "Open MPI 5, with all": {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
    "MPICH": {"PMI_SIZE": "4", "PMI_RANK": "0", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "0"},
    "MVAPICH2": {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0"},
    "PALS": {"PALS_RANKID": "0"},
    "PALS, a later process": {"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "3"},
    "PMIx": {"PMIX_RANK": "0"},
    "jsrun": {"JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_RANK": "0"},
    "LSF": {"LSB_MCPU_HOSTS": "node1 4 node2 4", "LSB_DJOB_NUMPROC": "8"},
    "LSF, only slots": {"LSB_DJOB_NUMPROC": "8"},
    "Flux": {"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "0"},
    "Horovod": {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"},
    "PBS": {"PBS_NUM_NODES": "2"},
    "Grid Engine": {"NHOSTS": "3"},
    "MEGASCALE, one host per slice": {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080",
        "TPU_WORKER_HOSTNAMES": "localhost",
    },
    "MEGASCALE, without a number": {"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080"},
    "TPU, host names": {"TPU_WORKER_HOSTNAMES": "a,b"},
    "TPU, addresses": {"TPU_PROCESS_ADDRESSES": "localhost:8476,localhost:8477"},
    "TPU, a file of addresses": {"TPU_PROCESS_ADDRESSES_PATH": "/etc/addresses"},
    "TPU, a later worker": {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a"},
    "Kubernetes Job, first pod": {"JOB_COMPLETION_INDEX": "0"},
    "Kubernetes JobSet, later pod": {"JOB_COMPLETION_INDEX": "3"},
    "LeaderWorkerSet, without an address": {"LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "1"},
    "SageMaker, an unknown host": {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "x"},
    "SageMaker, no JSON": {"SM_HOSTS": "algo-1,algo-2"},
    "TF_CONFIG, a parameter server": {
        "TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]},'
        ' "task": {"type": "ps", "index": 0}}'
    },
    "Vertex, no JSON": {"CLUSTER_SPEC": "workerpool0"},
    "AWS Batch": {"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_NODE_INDEX": "0"},
    "SkyPilot, without addresses": {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
    "Azure": {"AZUREML_NODE_COUNT": "2"},
    "torch on Kubernetes": {"PET_NNODES": "1:4"},
}


@pytest.mark.parametrize("given", SIGNS.values(), ids=SIGNS)
def test_a_sign_of_several_processes_that_leads_to_none_is_refused_by_name(given, variables):
    variables(given)
    sign = "=".join(next(iter(given.items()))).replace("(", r"\(").replace("[", r"\[")
    ways = r"fix: .*for each process, or pass .*alone on purpose, set JAX_NUM_PROCESSES=1"
    with refused(RuntimeError, f"sign: +{sign[:60]}.*{ways}"):
        initialize()
    with refused(RuntimeError, f"JAX sees 1.*sign: +{sign[:60]}.*call datarax_tfds.initialize"):
        require_all_processes()  # as every source does
    initialize(num_processes=1)
    require_all_processes()
    variables({"JAX_NUM_PROCESSES": "1"})
    initialize()
    require_all_processes()


ALONE = {
    "nothing": {},
    "empty": {"WORLD_SIZE": "", "TPU_WORKER_HOSTNAMES": ""},
    "TF_CONFIG of none": {"TF_CONFIG": "{}", "PET_NNODES": "1:1"},
    "torchrun of one": {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost"},
    "one node of torchrun in two nodes of Slurm": {"WORLD_SIZE": "1", "SLURM_JOB_NUM_NODES": "2"},
    "a step of one task": {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NUM_NODES": "2",
    },
    "mpiexec of one": {"PMI_SIZE": "1", "PMI_RANK": "0", "PALS_RANKID": "0"},
    "a pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "one host of TPUs": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "one slice": {
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    },
    "slots of one host of LSF": {"LSB_MCPU_HOSTS": "node1 16", "LSB_DJOB_NUMPROC": "16"},
    "SageMaker of one": {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"},
    "Vertex of one": {
        "CLUSTER_SPEC": '{"cluster": {"workerpool0": ["h:2222"]},'
        ' "task": {"type": "workerpool0", "index": 0}}'
    },
}
requests: list[str] = []
sys.addaudithook(
    lambda event, args: requests.append(event) if event.startswith("socket.") else None
)


@pytest.mark.parametrize("given", ALONE.values(), ids=ALONE)
def test_one_process_alone_neither_joins_nor_uses_the_network(given, variables):
    variables(given)
    requests.clear()
    initialize()
    require_all_processes()
    assert not requests
    assert not jax.distributed.is_initialized()


def test_a_file_of_several_hosts_is_a_sign(variables, tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("node1\nnode1\nnode2\n")
    variables({"PBS_NODEFILE": str(nodes)})
    with refused(RuntimeError, f"sign: +PBS_NODEFILE={nodes}"):
        initialize()
    nodes.write_text("node1\nnode1\n")
    initialize()
    variables({"PBS_NODEFILE": str(tmp_path / "elsewhere")})
    initialize()


def test_an_argument_that_jax_does_not_know_is_refused():
    with refused(TypeError, "argument 'coordinator'"):
        initialize(coordinator="localhost:1234")


def test_what_jax_says_about_a_job_is_passed_on(variables):
    variables({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"})
    jax.devices()  # too late to join
    with refused(RuntimeError, "sign: +WORLD_SIZE=2.*error: +.*before.*alone on purpose"):
        initialize()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"MASTER_ADDR": "fe80::1", "MASTER_PORT": "7"}, r"\[fe80::1\]:8"),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "70000"}, "host:65535"),
        ({"TF_CONFIG": cluster_spec("chief", "worker", 1, 0, "[fe80::1]")}, r"\[fe80::1\]:0"),
    ],
)
def test_an_address_has_a_port(given, address, variables, monkeypatch):
    def says(coordinator_address, **others):
        raise ValueError(coordinator_address)

    monkeypatch.setattr(jax.distributed, "initialize", says)
    variables({"WORLD_SIZE": "2", "RANK": "1"} | given)
    with refused(RuntimeError, f"error: +.*{address}"):
        initialize(timeout_s=float("inf"))
    variables({"JAX_COORDINATOR_ADDRESS": "host"})
    with refused(RuntimeError, "coordinator_address: +host\n.*use an address like host:8476"):
        initialize()


def test_a_cluster_that_a_user_teaches_jax_is_asked(variables, monkeypatch):
    from jax._src.clusters import ClusterEnv

    monkeypatch.setattr(ClusterEnv, "_cluster_types", list(ClusterEnv._cluster_types))

    class Ours(ClusterEnv):
        @classmethod
        def is_env_present(cls):
            return True

        @classmethod
        def get_process_count(cls):
            raise OSError("the server of our cluster does not answer")

    with refused(RuntimeError, "error: +OSError: the server of our cluster does not answer"):
        initialize()
    monkeypatch.setattr(Ours, "get_process_count", classmethod(lambda cls: 1))
    initialize()


@contextlib.contextmanager
def metadata_server(worker):
    """The metadata of a Cloud TPU VM, as one worker of two sees them."""
    said = {
        "agent-worker-number": str(worker),
        "worker-network-endpoints": "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.1",
        "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\n",
    }
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the name that http.server asks for
            name = self.path.rpartition("/")[2]
            asked.append(name)
            self.send_response(200 if name in said else 404)
            self.end_headers()
            self.wfile.write(said.get(name, "").encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
TPU_VM = {"JAX_FORCE_TPU_INIT": "1"}
GKE = TPU_VM | {"TPU_SKIP_MDS_QUERY": "true"}


# The variables of process `number` of two, whose coordinator may use `port`; and the GPUs that the
# process takes.
JOBS = {
    "torchrun": lambda number, port: (
        {
            "WORLD_SIZE": "2",
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port - 1),
        },
        str(number),
    ),
    "Slurm, a task for each node": lambda number, port: (
        SLURM
        | {
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": str(number),
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "Slurm, two tasks on a node": lambda number, port: (
        SLURM
        | {
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NUM_NODES": "1",
            "JAX_COORDINATOR_PORT": str(port),
        },
        str(number),
    ),
    "mpiexec in a step of Slurm": lambda number, port: (
        SLURM
        | {
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "PMI_SIZE": "2",
            "PMI_RANK": str(number),
            "MPI_LOCALNRANKS": "2",
            "MPI_LOCALRANKID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        },
        str(number),
    ),
    "Open MPI 4": lambda number, port: (
        {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(number),
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "Open MPI with an address": lambda number, port: (
        {
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(number),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        },
        str(number),
    ),
    "Kubernetes Job with an address": lambda number, port: (
        {
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "JOB_COMPLETION_INDEX": str(number),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
        },
        "all",
    ),
    "Kubeflow": lambda number, port: (
        {
            "COORDINATOR_ADDRESS": "127.0.0.1",
            "COORDINATOR_PORT": str(port - 1),
            "NUM_PROCESSES": "2",
            "PROCESS_ID": str(number),
        },
        "all",
    ),
    "LeaderWorkerSet": lambda number, port: (
        {
            "LWS_LEADER_ADDRESS": "127.0.0.1",
            "LWS_GROUP_SIZE": "2",
            "LWS_WORKER_INDEX": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "SkyPilot": lambda number, port: (
        {
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "SageMaker": lambda number, port: (
        {
            "SM_HOSTS": '["localhost", "127.0.0.1"]',
            "SM_CURRENT_HOST": ["127.0.0.1", "localhost"][number],
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "TF_CONFIG": lambda number, port: (
        {"TF_CONFIG": cluster_spec("chief", "worker", number, port)},
        "all",
    ),
    "Vertex": lambda number, port: (
        {"CLUSTER_SPEC": cluster_spec("workerpool0", "workerpool1", number, port)},
        "all",
    ),
    "Cloud TPU VM, by the metadata server": lambda number, port: (
        TPU_VM | {"JAX_COORDINATOR_PORT": str(port)},
        "all",
    ),
    "TPUs in GKE": lambda number, port: (
        GKE
        | {
            "TPU_PROCESS_ADDRESSES": "127.0.0.1,127.0.0.1",
            "TPU_WORKER_ID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
    "MEGASCALE, one host per slice": lambda number, port: (
        GKE
        | {
            "TPU_WORKER_HOSTNAMES": "127.0.0.1",
            "TPU_WORKER_ID": "0",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": str(number),
            "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8080",
            "JAX_COORDINATOR_PORT": str(port),
        },
        "all",
    ),
}


@contextlib.contextmanager
def started(variables, arguments, folder):
    """Two processes, with the variables and the arguments of `initialize` that each is given."""
    clean = {name: v for name, v in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    clean |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_BIND_ADDRESS": ""}
    processes = []
    try:
        for number in range(2):
            command = [str(WORKERS / "joins.py"), str(folder / f"{number}.json")]
            with (folder / f"{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command, json.dumps(arguments[number])],
                        env=clean | variables[number],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        launching.end(processes)


def check_joined(variables, arguments, gpus, folder):
    with started(variables, arguments, folder) as processes:
        statuses = [process.wait(GUARD_S) for process in processes]
    logs = "".join((folder / f"{number}.log").read_text()[-3000:] for number in range(2))
    assert statuses == [0, 0], logs
    for number in range(2):
        note = json.loads((folder / f"{number}.json").read_text())
        expected = {"process": number, "count": 2, "gpus": gpus[number], "together": [0, 1]}
        assert note == expected, logs


@pytest.mark.parametrize("name", JOBS)
def test_the_processes_of_a_launcher_find_each_other(name, tmp_path):
    port = launching.free_port()
    variables, gpus = zip(*(JOBS[name](number, port) for number in range(2)), strict=True)
    with metadata_server(0) as (first, asked), metadata_server(1) as (second, _):
        servers = [{"GCE_METADATA_IP": server} for server in (first, second)]
        variables = [
            given | server | {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
            for given, server in zip(variables, servers, strict=True)
        ]
        check_joined(variables, [{}, {}], gpus, tmp_path)
    assert bool(asked) == (name in ("Cloud TPU VM, by the metadata server", "TPUs in GKE"))


def test_arguments_say_what_the_environment_does_not(tmp_path):
    port = launching.free_port()
    address = {"coordinator_bind_address": f"127.0.0.1:{port}", "local_device_ids": [3]}
    arguments = [
        address
        | {"coordinator_address": f"127.0.0.1:{port}", "num_processes": 2, "process_id": number}
        for number in range(2)
    ]
    # These say something else, and do not count.
    variables = [{"WORLD_SIZE": "8", "RANK": "5", "SLURM_NTASKS": "4"}] * 2
    check_joined(variables, arguments, ["3", "3"], tmp_path)


@pytest.mark.parametrize("name", ["timeout_s", "stall_warn_s", "stall_timeout_s"])
@pytest.mark.parametrize("value", ["30", 0, -1, float("nan"), [30]])
def test_a_limit_that_is_no_time_is_refused_and_changes_nothing(name, value):
    before = job.limits
    with refused(ValueError, f"{name} must be a number of seconds above 0"):
        initialize(**{name: value})
    assert job.limits is before
