"""Joins the processes of one job, if (and only if) something launched several."""

import math
import os
import warnings

import jax

from sharding.checks import refused
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.exit_hooks import ExitHooks
from sharding.hosts.forked_children import isolate_forked_children
from sharding.hosts.job import Limits, job
from sharding.hosts.watch import Watch

# The variables in which launchers say how many processes they started. The first is set by
# scripts/launch_local.py, and by any launcher that knows JAX.
_COUNTS = {
    "JAX": "JAX_NUM_PROCESSES",
    "Slurm": "SLURM_STEP_NUM_TASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
    "MPI": "PMI_SIZE",
    "torchrun": "WORLD_SIZE",
}
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def initialize(
    *,
    timeout_s: float = 300.0,
    stall_warn_s: float = 30.0,
    stall_timeout_s: float | None = None,
    fail_fast: bool = True,
    end_together: bool | None = None,
) -> None:
    """Joins the other processes if a launcher started several, and monitors them.

    Call it before any other JAX call. A program that starts `jax.distributed` itself calls this
    afterwards, so that the other processes are monitored. With a single process, this only sets the
    limits.

    From then on no process is left waiting: if an exception ends one process, the others are told,
    and end within seconds with exit status 70. The log names the process that holds up a batch.

    Launchers: `scripts/launch_local.py`, or any that sets `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; and those that JAX knows: Slurm, Open MPI, Cloud TPU.

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

    Raises:
        RuntimeError: The launcher's variables say that there are several processes, and JAX
            cannot join them.
    """
    if end_together is not None:
        said = "initialize(end_together=...) is deprecated: it is called fail_fast now"
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        fail_fast = end_together
    job.limits = Limits(timeout_s, stall_warn_s, stall_timeout_s)
    if not jax.distributed.is_initialized():
        _join(timeout_s)
    if jax.distributed.is_initialized() and jax.process_count() > 1 and not job.is_watched:
        job.is_watched = True
        exit_cause = ExitCause()
        isolate_forked_children(exit_cause)
        ExitHooks(exit_cause, Watch(exit_cause, fail_fast=fail_fast), fail_fast=fail_fast)


def require_all_processes() -> None:
    """Checks that JAX sees all processes that a launcher started.

    If it sees only one, each process would train alone, on all of the data.

    Raises:
        RuntimeError: JAX sees fewer; the message gives the launcher's variable.
    """
    launcher, count = _launched()
    if jax.process_count() < count:
        raise refused(
            RuntimeError,
            "jax.distributed",
            f"a launcher started {count} processes, and JAX sees {jax.process_count()}.",
            launcher=launcher,
            fix="call datarax_tfds.initialize() before any other JAX call, or unset the"
            " variable if this process is alone on purpose",
        )


def _launched() -> tuple[str, int]:
    """The launcher of this process, and how many processes it started; `("", 1)` if only one."""
    for launcher, variable in _COUNTS.items():
        count = os.environ.get(variable, "1")
        if count.isdecimal() and int(count) > 1:
            return f"{launcher} ({variable}={count})", int(count)
    hosts = [host for host in os.environ.get(_TPU_HOSTS, "").split(",") if host]
    if len(hosts) > 1:
        return f"Cloud TPU ({_TPU_HOSTS})", len(hosts)
    return "", 1


def _join(timeout_s: float) -> None:
    launcher, count = _launched()
    if count == 1:
        return
    named = "JAX_NUM_PROCESSES" in launcher
    try:
        jax.distributed.initialize(
            num_processes=count if named else None,
            process_id=int(os.environ.get("JAX_PROCESS_ID", "-1")) if named else None,
            initialization_timeout=math.ceil(timeout_s),
        )
    except (ValueError, RuntimeError) as error:
        raise refused(
            RuntimeError,
            "initialize",
            "a launcher started several processes, and JAX could not join them.",
            launcher=launcher,
            error=error,
            fix="call initialize() before any other JAX call; for a launcher that JAX does not"
            " know, set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
        ) from error
    require_all_processes()
