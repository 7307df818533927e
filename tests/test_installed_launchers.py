"""Launchers themselves, where they are installed: Slurm, Open MPI 4 and torchrun, on this machine.

`apt-get install slurm-wlm openmpi-bin` has the first two. `test_launchers.py` needs none of them.
"""

import contextlib
import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
import warmed
from checkout import GUARD_S, ROOT, TRAIN, WORKERS

from datarax_tfds.cli import launching

PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def installed(*names):
    paths = [shutil.which(name, path=PROGRAMS) for name in names]
    if None in paths:
        pytest.skip(f"{names[paths.index(None)]} is not installed")
    return paths


@pytest.fixture
def variables():
    """Those of a job whose coordinator listens on loopback only."""
    port = launching.free_port()
    address = {"JAX_COORDINATOR_PORT": str(port)}
    address |= {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
    return os.environ | address | {"JAX_PLATFORMS": "cpu"}


def check_joined(command, rank, variables, folder):
    """Runs two processes, whose numbers are in the variable `rank`, and compares their notes."""
    worker = f'exec "$0" "$1" "$2/${rank}.json" "{{}}"'
    command += ["sh", "-c", worker, sys.executable, str(WORKERS / "joins.py"), str(folder)]
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=GUARD_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for number in range(2):
        note = json.loads((folder / f"{number}.json").read_text())
        expected = {"process": number, "count": 2, "gpus": str(number), "together": [0, 1]}
        assert note == expected


def test_the_processes_of_mpirun_find_each_other(variables, tmp_path):
    [mpirun] = installed("mpirun")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    if "(Open MPI) 4" not in version:
        pytest.skip("mpirun is not that of Open MPI 4, which alone needs no mpi4py")
    command = [mpirun, "--oversubscribe", "--mca", "oob_tcp_if_include", "lo", "-n", "2"]
    command += ["--allow-run-as-root"] if os.getuid() == 0 else []
    check_joined(command, "OMPI_COMM_WORLD_RANK", variables, tmp_path)


def test_the_processes_of_torchrun_find_each_other(variables, tmp_path):
    [torchrun] = installed("torchrun")
    address = f"127.0.0.1:{launching.free_port()}"
    command = [torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--nproc-per-node=2"]
    check_joined([*command, "--no-python"], "RANK", variables, tmp_path)


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
KillWait=600
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=localhost Default=YES
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm with one node, which is this machine; returns what one of its commands prints."""
    names = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo")
    munged, slurmctld, slurmd, *_ = installed(*names)
    folder = tmp_path / "slurm"
    for each in (folder, folder / "state", folder / "spool"):
        each.mkdir()
    host = platform.node().partition(".")[0]
    ports = {"port": launching.free_port(), "node_port": launching.free_port()}
    configuration = CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), **ports)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"key-file": "key", "socket": "munge", "pid-file": "munged.pid", "seed-file": "seed"}
    commands = [
        [munged, "--foreground", "--force", *(f"--{a}={folder / b}" for a, b in files.items())],
        [slurmctld, "-D", "-c"],
        [slurmd, "-D", "-N", "localhost"],
    ]

    def run(*words):
        done = subprocess.run(words, capture_output=True, text=True, timeout=GUARD_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "printed").open("wb"))
        for command in commands:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait, GUARD_S)
            stack.callback(process.terminate)
        deadline = time.monotonic() + GUARD_S
        while True:
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if asked.stdout.strip() == "idle":
                break
            assert time.monotonic() < deadline, (folder / "printed").read_text()[-3000:]
            time.sleep(0.1)
        stack.callback(subprocess.run, ["scancel", f"--user={getpass.getuser()}"])
        yield run


def ended(slurm, job, log):
    """Waits for the end of a job, and returns its state and how often it was started again."""
    deadline = time.monotonic() + GUARD_S
    hurried = 0
    while True:
        shown = slurm("scontrol", "show", "job", job)
        state = re.search(r"JobState=(\w+)", shown)[1]
        starts = int(re.search(r"Restarts=(\d+)", shown)[1])
        if state in ENDED:
            return state, starts
        if "Reason=BeginTime" in shown and hurried < starts:
            # Slurm keeps a job that is queued again for two minutes. In the second of its end, it
            # would refuse the credential of the next start.
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3")
            hurried = starts
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def parameters(checkpoints, step):
    """The model and its optimizer, as they were saved."""
    path = checkpoints / str(step) / "model"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return jax.tree.leaves(checkpointer.restore(path, restore_args=as_numpy))


def test_a_job_that_slurm_stops_and_starts_again_ends_like_one_that_ran_through(
    slurm, variables, tmp_path, monkeypatch
):
    import digits

    no_gcs = tfds.download.DownloadConfig(try_download_gcs=False)
    data = str(tmp_path / "data")
    digits.Digits(data_dir=data).download_and_prepare(download_config=no_gcs)
    training = [*TRAIN[1:], "--epochs", "7", "--source.data-dir", data, "--checkpoint-dir"]
    for name in ("JAX_COORDINATOR_PORT", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, variables[name])
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{PROGRAMS}")
    log = tmp_path / "log"
    script = [str(ROOT / "scripts/launchers/slurm.sh"), str(WORKERS / "stopped_by_slurm.py")]
    stopped = [*script, *training, str(tmp_path / "stopped")]
    job = slurm("sbatch", "--parsable", f"--output={log}", *stopped)
    state = ended(slurm, job, log)
    said = log.read_text()
    assert state == ("COMPLETED", 2), said[-3000:]
    assert re.findall(r"saved at step (\d+)", said), said[-3000:]
    starts = list(dict.fromkeys(map(int, re.findall(r"from step (\d+):", said))))
    assert 0 == starts[0] < 30 <= starts[1] < 70 <= starts[2] < 105, starts

    whole = [sys.executable, *training, str(tmp_path / "whole")]
    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.delenv("JAX_COORDINATOR_PORT")
    assert launching.launch(2, whole, logs, GUARD_S, warmed.Popen) == 0
    of_stopped = parameters(tmp_path / "stopped", 105)
    of_whole = parameters(tmp_path / "whole", 105)
    assert len(of_stopped) == len(of_whole) > 20
    # The same batches, in the same order: any other would give other parameters.
    assert all(map(np.array_equal, of_stopped, of_whole))
