"""Joins the processes of one job, when (and only when) something launched several."""

import os

import jax
from jax.sharding import NamedSharding

from sharding import watch
from sharding.meshes import batch_sharding, make_mesh
from sharding.messages import explain
from sharding.placement import row_axes
from sharding.waits import limits

# What each launcher says of the number of processes that it started. The first names are
# those of scripts/launch_local.py, and for any launcher that knows JAX.
_COUNTS = {
    "JAX": "JAX_NUM_PROCESSES",
    "Slurm": "SLURM_STEP_NUM_TASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
    "MPI": "PMI_SIZE",
    "torchrun": "WORLD_SIZE",
}
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def launched() -> tuple[str, int]:
    """The launcher that started this process, and how many processes it started.

    `("", 1)` where none says that there is more than one.
    """
    for launcher, variable in _COUNTS.items():
        count = os.environ.get(variable, "1")
        if count.isdecimal() and int(count) > 1:
            return f"{launcher} ({variable}={count})", int(count)
    hosts = [host for host in os.environ.get(_TPU_HOSTS, "").split(",") if host]
    if len(hosts) > 1:
        return f"Cloud TPU ({_TPU_HOSTS})", len(hosts)
    return "", 1


def initialize(
    *,
    timeout_s: int = 300,
    stall_warn_s: float = 30.0,
    stall_timeout_s: float | None = None,
    end_together: bool = True,
) -> None:
    """Joins the other processes where a launcher started several, and looks after them.

    Call it first thing, before any other JAX call. A program that starts `jax.distributed`
    itself, in a way of its own, calls it behind that, to have the others looked after.

    From then on no process is left waiting: an exception that ends one is told to the others,
    which end with it, exit status 70, within seconds; and who holds up a batch is named. One
    process alone has only its limits set.

    Launchers: `scripts/launch_local.py`, or any that sets `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; and those that JAX knows: Slurm, Open MPI, Cloud TPU.

    Args:
        timeout_s: How long to wait for the other processes: to join, and wherever they must agree.
        stall_warn_s: After so long without a batch, the log names the process that is late, or
            the file that is being read.
        stall_timeout_s: After so long, the run ends, naming the same; never, where absent.
        end_together: Whether an exception that ends one process ends all.

    Raises:
        RuntimeError: The launcher's variables say that there are several processes, and JAX
            cannot join them.
    """
    limits.agree_s, limits.warn_s, limits.end_s = timeout_s, stall_warn_s, stall_timeout_s
    if not jax.distributed.is_initialized():
        _join(timeout_s)
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        watch.start(end_together=end_together)


def _join(timeout_s: int) -> None:
    launcher, count = launched()
    if count == 1:
        return
    named = "JAX_NUM_PROCESSES" in launcher
    try:
        jax.distributed.initialize(
            num_processes=count if named else None,
            process_id=int(os.environ.get("JAX_PROCESS_ID", "-1")) if named else None,
            initialization_timeout=timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            explain(
                "initialize",
                "a launcher started several processes, and JAX could not join them.",
                launcher=launcher,
                error=error,
                fix="call initialize() before any other JAX call; for a launcher that JAX does not"
                " know, set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
            )
        ) from error
    require_all_processes()


def require_all_processes() -> None:
    """Refuses to go on where a launcher started several processes and JAX sees fewer.

    Otherwise each of them would take itself for the only one, and train on all of the data.

    Raises:
        RuntimeError: As above, with the launcher's variable.
    """
    launcher, count = launched()
    if jax.process_count() < count:
        raise RuntimeError(
            explain(
                "jax.distributed",
                f"a launcher started {count} processes, and JAX sees {jax.process_count()}.",
                launcher=launcher,
                fix="call datarax_tfds.initialize() before any other JAX call, or unset the"
                " variable if this process is alone on purpose",
            )
        )


def resolved_sharding(sharding: NamedSharding | None, subject: str) -> NamedSharding:
    """The sharding of the batches, checked; a mesh of one device where there is none."""
    require_all_processes()
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError(
                explain(
                    subject,
                    "there are several processes, and no sharding says which rows are whose.",
                    processes=jax.process_count(),
                    fix="pass sharding=batch_sharding(make_mesh({'data': -1}))",
                )
            )
        return batch_sharding(make_mesh({"data": 1}, devices=jax.local_devices()[:1]))
    row_axes(sharding)
    return sharding
