"""Joins the processes of one job, if (and only if) something launched several."""

import dataclasses
import inspect
import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from sharding.checks import refused, require_arguments
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.exit_hooks import ExitHooks
from sharding.hosts.forked_children import isolate_forked_children
from sharding.hosts.job import Limits, job
from sharding.hosts.joining import ALONE, join
from sharding.hosts.launchers import expected_processes
from sharding.hosts.watch import Watch

_LONGEST_JOIN_S = 1_000_000  # 11 days; JAX counts milliseconds in 32 bits


def initialize(
    *,
    timeout_s: float = 300.0,
    stall_warn_s: float = 30.0,
    stall_timeout_s: float | None = None,
    fail_fast: bool = True,
    end_together: bool | None = None,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: int | Sequence[int] | None = None,
    **distributed: Any,
) -> None:
    """Joins the other processes if a launcher started several, and monitors them.

    Call it before any other JAX call. A program that starts `jax.distributed` itself calls this
    afterwards, so that the other processes are monitored. With a single process, this only sets the
    limits.

    From then on no process is left waiting: if an exception ends one process, the others are told,
    and end within seconds with exit status 70. The log names the process that holds up a batch.

    JAX's own detection finds the other processes (Slurm, Open MPI, Cloud TPU, Kubernetes). This
    adds torchrun, SageMaker, Vertex and others, and the variables `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`: see the page "Launchers" of the guide. A process that
    a launcher started as the only one of its node takes all GPUs of the node.

    Args:
        timeout_s: How long to wait for the other processes to join, and wherever all must agree.
            The wait is longer for a process that makes progress in indexing files or loading
            records. If one call on arrays of several processes takes this long, and another process
            has ended, this process ends with an error.
        stall_warn_s: After this long without a batch, or while a source is built, the log names the
            process that is late, or the file that is being read.
        stall_timeout_s: After this long, the run ends with an error that names the same; None for
            no limit. It also bounds each wait for metadata, for a file to be opened and indexed,
            and for another process that prepares the dataset.
        fail_fast: Whether an exception that ends one process ends all processes.
        end_together: The former name of `fail_fast`, which still works, with a
            `DeprecationWarning`.
        coordinator_address: Where process 0 runs JAX's coordinator, as "host:port".
        num_processes: The processes of the job. 1 says that this process is alone on purpose,
            whatever the variables of launchers say.
        process_id: The number of this process, in `[0, num_processes)`.
        local_device_ids: The GPUs of this node that this process uses.
        **distributed: Other arguments of `jax.distributed.initialize`.

    Raises:
        RuntimeError: There is a sign of several processes, and this one cannot join them. The
            message names the sign, and what is missing.
        TypeError: There is no such argument, here or in `jax.distributed.initialize`.
        ValueError: A limit is not a number of seconds above 0.
    """
    if end_together is not None:
        said = "initialize(end_together=...) is deprecated: it is called fail_fast now"
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        fail_fast = end_together
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
        "local_device_ids": local_device_ids,
    }
    given = {name: value for name, value in given.items() if value is not None} | distributed
    own = inspect.signature(initialize).parameters.keys() - {"distributed"}
    known = own | inspect.signature(jax.distributed.initialize).parameters.keys()
    require_arguments("initialize", distributed, known, {})
    limits = Limits(timeout_s, stall_warn_s, stall_timeout_s)
    _require_seconds(limits)
    job.coordinator.refuse_in_forked_child()
    job.limits = limits
    if not jax.distributed.is_initialized():
        join({"initialization_timeout": math.ceil(min(timeout_s, _LONGEST_JOIN_S))} | given)
        job.is_complete = True
    if jax.distributed.is_initialized() and jax.process_count() > 1 and not job.is_watched:
        job.is_watched = True
        exit_cause = ExitCause()
        isolate_forked_children(exit_cause)
        watch = Watch(job, exit_cause, fail_fast=fail_fast)
        ExitHooks(job, exit_cause, watch, fail_fast=fail_fast)
        watch.start()


def _require_seconds(limits: Limits) -> None:
    for name, value in dataclasses.asdict(limits).items():
        if value is None and name == "stall_timeout_s":
            continue
        if not isinstance(value, numbers.Real) or not float(value) > 0:
            raise refused(
                ValueError,
                "initialize",
                f"{name} must be a number of seconds above 0.",
                **{name: repr(value)},
                fix=f"use {name}=600, or leave it out",
            )


def require_all_processes() -> None:
    """Checks that JAX sees all processes that a launcher started.

    If it sees only one, each process would train alone, on all of the data.

    Raises:
        RuntimeError: JAX sees fewer; the message gives the launcher's variable.
    """
    if job.is_complete:
        return
    sign, count = expected_processes()
    if sign is not None and jax.process_count() < count:
        raise refused(
            RuntimeError,
            "jax.distributed",
            f"there is a sign of several processes, and JAX sees {jax.process_count()}.",
            sign=sign,
            fix=f"call datarax_tfds.initialize() before any other JAX call; {ALONE}",
        )
