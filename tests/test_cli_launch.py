"""The launcher: who failed, how, and that nothing is left running."""

import os
import re
import subprocess
import sys
import tempfile
import time

import pytest
from checkout import GUARD_S

from datarax_tfds.cli import launching, main

LAUNCH = [sys.executable, "-m", "datarax_tfds", "launch"]


def launched(count, code, tmp_path, *options):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys, time\nnumber = int(os.environ['JAX_PROCESS_ID'])\n" + code)
    command = [*LAUNCH, str(count), "--logs", str(tmp_path / "logs"), *options, "--"]
    return subprocess.run(
        [*command, sys.executable, str(worker)],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
    )


def test_noise_is_not_shown_also_if_it_is_read_in_parts(tmp_path, capsysbinary):
    log, noise = tmp_path / "log", b"[Gloo] Rank 0 is connected to 1 peer ranks.\n"
    noise += b"I0000 00:00:1795875163.488294 7 port.cc:153] oneDNN custom operations are on.\n"
    whole = b"one\n" + noise + b"[Gloo] Rank 1 failed\n 50%|##" + b"\n[Glo"
    for cut in range(len(whole)):
        shown = 0
        for end in (cut, len(whole)):
            log.write_bytes(whole[:end])
            shown = launching.print_news(log, shown, ended=False)
        assert capsysbinary.readouterr().out == b"one\n[Gloo] Rank 1 failed\n 50%|##\n"
    start = len(whole) - len(b"[Glo")
    assert launching.print_news(log, start, ended=True) == len(whole)
    assert capsysbinary.readouterr().out == b"[Glo"


STOPS = """
import pathlib, signal
here = pathlib.Path(sys.argv[1])
def note(name):
    (here / f"{name}-{number}.new").write_text(str(os.getpid()))
    (here / f"{name}-{number}.new").rename(here / f"{name}-{number}")
def stop(*_):
    note("told")
    if sys.argv[2] == "stops":
        sys.exit(os.EX_TEMPFAIL)
signal.signal(signal.SIGTERM, stop)
note("ready")
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("how", "status"), [("stops", os.EX_TEMPFAIL), ("ignores it", 143)])
def test_a_notice_of_preemption_reaches_all_and_a_second_one_ends_them(tmp_path, how, status):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys\nnumber = int(os.environ['JAX_PROCESS_ID'])\n" + STOPS)
    command = [*LAUNCH, "2", "--logs", str(tmp_path / "logs"), "--"]
    launcher = subprocess.Popen([*command, sys.executable, str(worker), str(tmp_path), how])
    try:
        wait_for(tmp_path, "ready", launcher)
        launcher.terminate()
        wait_for(tmp_path, "told", launcher)
        if how != "stops":
            launcher.terminate()
        assert launcher.wait(GUARD_S) == status
        pids = [int((tmp_path / f"ready-{number}").read_text()) for number in range(2)]
        assert not any(map(running, pids))
    finally:
        launcher.kill()
        launcher.wait()


def wait_for(folder, name, launcher):
    """Waits until both processes have noted it; the launcher may have ended then."""
    while len(list(folder.glob(f"{name}-?"))) < 2:
        assert launcher.poll() is None or name == "told"
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_process_knows_its_place_and_has_a_log(tmp_path):
    code = "print('this is', number, 'of', os.environ['JAX_NUM_PROCESSES'], flush=True)\n"
    done = launched(3, code, tmp_path)
    assert done.returncode == 0
    assert done.stdout == "this is 0 of 3\n"
    for number in range(3):
        log = tmp_path / "logs" / f"process-{number}.log"
        assert log.read_text() == f"this is {number} of 3\n"


@pytest.mark.parametrize(
    ("fails", "status", "said"),
    [
        ("sys.exit('the disk is full')", 1, "process 1 of 3 ended with 1"),
        ("raise RuntimeError('the disk is full')", 1, "process 1 of 3 ended with 1"),
        (
            "print('the disk is full', flush=True); os.kill(os.getpid(), 9)",
            137,
            "process 1 of 3 was ended by SIGKILL",
        ),
    ],
)
def test_when_one_fails_all_are_ended_and_it_is_said_who_and_why(tmp_path, fails, status, said):
    code = (
        "import pathlib\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / f'new-{number}').write_text(str(os.getpid()))\n"
        "(here / f'new-{number}').rename(here / f'pid-{number}')\n"
        "if number == 1:\n"
        "    while len(list(here.glob('pid-*'))) < 3: time.sleep(0.01)\n"
        f"    {fails}\n"
        "time.sleep(10_000)\n"
    )
    done = launched(3, code, tmp_path)
    assert done.returncode == status
    assert said in done.stderr
    assert re.search(r"others: +0 was still running, 2 was still running", done.stderr)
    assert "the disk is full" in done.stderr
    assert not any(running(int((tmp_path / f"pid-{number}").read_text())) for number in range(3))


def test_a_time_limit_ends_all_and_names_the_late(tmp_path):
    code = "if number == 1: time.sleep(10_000)\n"
    done = launched(2, code, tmp_path, "--timeout-s", "2")
    assert done.returncode == 124
    # On a busy machine, process 0 may not have begun.
    assert re.search(r"after 2 s still running: process (0, )?1\.", done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "Missing"),
        ("2", "then -- and a command"),
        ("0 -- true", "give a number of processes"),
        ("two -- true", "two"),
        ("2 -- no-such-command --help", "No such file.*no-such-command"),
    ],
)
def test_a_wrong_command_line_is_explained(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["launch", *words.split()]) == 2
    assert re.search(said, capsys.readouterr().err)
