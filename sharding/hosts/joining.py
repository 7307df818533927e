"""Finds the other processes of a job, and joins them through `jax.distributed`."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

# JAX has no public name for its detection of clusters.
from jax._src import clusters

from sharding.checks import refused
from sharding.hosts.launchers import Launch, index_in_kubernetes_job, launches, sign_of_several

ALONE = (
    "if this process is alone on purpose, set JAX_NUM_PROCESSES=1 or call"
    " initialize(num_processes=1)"
)
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_VARIABLES = {
    "coordinator_address": _ADDRESS,
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def join(given: Mapping[str, Any]) -> None:
    """Joins the other processes; returns at once if there are none.

    What the caller or the variables `JAX_*` say holds. For the rest, JAX's own detection decides if
    it finds a cluster, unless a launcher within that cluster started another number of processes,
    as mpiexec does in a step of Slurm.

    Args:
        given: The arguments that the caller passes for `jax.distributed.initialize`.

    Raises:
        RuntimeError: There is a sign of several processes, and they cannot be joined.
    """
    if "cluster_detection_method" in given:
        _join(f"cluster_detection_method={given['cluster_detection_method']}", given)
        return
    found = _stated(given) + launches()
    if found and found[0].is_for_jax and found[0].count == 1:
        if "coordinator_address" in given:
            _join(found[0].sign, given)
        return
    several = _of_one_job(found)
    known = {**_known(several), **given}
    missing = [name for name in _VARIABLES if name not in known]
    if several and several[0].is_for_jax and not missing:
        _join(several[0].sign, _by_ourselves(several) | known)
        return
    in_cluster, error = _cluster_of_jax()
    if in_cluster > 1 and known.get("num_processes", in_cluster) == in_cluster:
        stated = _known([launch for launch in several if launch.is_for_jax])
        _join("a cluster that JAX detects", {**_all_gpus(several), **stated, **given})
    elif several and not missing:
        _join(several[0].sign, _by_ourselves(several) | known)
    elif several and in_cluster and missing == ["coordinator_address"]:
        # JAX adds the address, and must not choose the GPU: it would go by the outer launcher.
        _join(several[0].sign, {"local_device_ids": []} | _own_gpu(several) | known)
    elif several and several[0].is_mpi and importlib.util.find_spec("mpi4py"):
        method = {"cluster_detection_method": "mpi4py"}
        _join(several[0].sign, {**method, **_all_gpus(several), **given})
    elif sign := _sign(found, several, in_cluster, error):
        raise refused(
            RuntimeError,
            "initialize",
            "there is a sign of several processes, and it does not say how to join them.",
            sign=sign,
            missing=", ".join(missing),
            **({} if error is None else {"error": f"{type(error).__name__}: {error}"}),
            fix=f"set {', '.join(_VARIABLES[name] for name in missing)} for each process, or pass"
            f" {', '.join(missing)} to initialize(); {ALONE}",
        )


def _sign(
    found: Sequence[Launch], several: Sequence[Launch], in_cluster: int, error: Exception | None
) -> str | None:
    """What shows that there are several processes; None if this one is alone."""
    if several:
        return several[0].sign
    if error is not None:
        return "a cluster that JAX detects"
    return None if found or in_cluster else sign_of_several()


def _stated(given: Mapping[str, Any]) -> list[Launch]:
    """What the caller of `initialize` says itself."""
    said = ", ".join(f"{name}={given[name]}" for name in _VARIABLES if name in given)
    count, process = given.get("num_processes"), given.get("process_id")
    address = given.get("coordinator_address")
    return [Launch(said, count, process, address, is_for_jax=True)] if said else []


def _of_one_job(found: Sequence[Launch]) -> list[Launch]:
    """The launchers of the innermost job of several processes, of which others may be a part."""
    several = [launch for launch in found if launch.count != 1]
    counts = [launch.count for launch in several if launch.count is not None]
    return [launch for launch in several if launch.count in (None, *counts[:1])]


def _known(several: Sequence[Launch]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` that the launchers say."""
    said = {
        "coordinator_address": [launch.coordinator for launch in several],
        "num_processes": [launch.count for launch in several],
        "process_id": [launch.process for launch in several],
    }
    if several:
        said["process_id"].append(index_in_kubernetes_job())
    known = {
        name: [value for value in values if value is not None] for name, values in said.items()
    }
    return {name: values[0] for name, values in known.items() if values}


def _cluster_of_jax() -> tuple[int, Exception | None]:
    """The number of processes in the cluster that JAX detects, 0 if none; and what went wrong."""
    try:
        for cluster in clusters.ClusterEnv._cluster_types:
            if cluster.opt_in_only_method:
                continue
            # JAX would ask the server of Kubernetes from every pod, also from one that is alone.
            if cluster is clusters.K8sCluster and index_in_kubernetes_job() is None:
                continue
            if cluster.is_env_present():
                return cluster.get_process_count(), None
    except Exception as error:  # of requests, kubernetes, ...: it is reported
        return 0, error
    return 0, None


def _by_ourselves(several: Sequence[Launch]) -> dict[str, Any]:
    # JAX would take the GPU by the rank that an outer launcher gave.
    return {"cluster_detection_method": "deactivate"} | _own_gpu(several)


def _own_gpu(several: Sequence[Launch]) -> dict[str, Any]:
    """All GPUs if the process has the node for itself, and otherwise one, as JAX chooses."""
    ranks = [launch.local_process for launch in several if launch.local_process is not None]
    if os.environ.get("JAX_LOCAL_DEVICE_IDS") or not ranks:
        return {}
    return {"local_device_ids": [ranks[0]]} | _all_gpus(several)


def _all_gpus(several: Sequence[Launch]) -> dict[str, Any]:
    """Makes JAX take all GPUs if the process has the node for itself, or sees only its own."""
    counts = [launch.local_count for launch in several if launch.local_count is not None]
    sees_one = any(os.environ.get(name, ",").count(",") == 0 for name in _VISIBLE_GPUS)
    if os.environ.get("JAX_LOCAL_DEVICE_IDS") or not (counts[:1] == [1] or sees_one):
        return {}
    return {"local_device_ids": []}


def _join(sign: str, arguments: Mapping[str, Any]) -> None:
    address = str(arguments.get("coordinator_address") or os.environ.get(_ADDRESS) or "")
    if address and not re.fullmatch(r".+:\d+", address.strip()):
        raise refused(  # JAX would raise an IndexError in process 0, and wait in vain in others
            RuntimeError,
            "initialize",
            "the address of the coordinator has no port.",
            sign=sign,
            coordinator_address=address,
            fix=f"use an address like {address}:8476, the same for every process",
        )
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise refused(
            RuntimeError,
            "initialize",
            "JAX could not join the other processes.",
            sign=sign,
            error=error,
            fix="correct that error; call initialize() before any other JAX call, and let every"
            f" process reach host and port of process 0; {ALONE}",
        ) from error
