"""A job of two processes has its batches, and in time, whatever becomes of its workers.

python -m pytest tests/test_service_faults.py --full    # as scripts/fault_report.py --service
"""

import json
import os
import signal
import sys
import time

import elsewhere
import numpy as np
import ray_clusters
import service_job
import warmed
from checkout import GUARD_S, WORKERS

from datarax_tfds.cli import launching

LATE_S = 2.0
COUNT = 2  # processes of the job
MORE_STEPS = 30  # after each fault


class Job:
    """Processes that train, and what they have noted so far."""

    def __init__(self, data_dir, address, place):
        self._place = place
        script = str(WORKERS / "trains_with_ray.py")
        command = [sys.executable, script, str(data_dir), address, str(LATE_S), str(place)]
        self.processes = launching.start(COUNT, command, place, warmed.Popen)

    def notes(self):
        """The notes of each process."""
        found = []
        for number in range(COUNT):
            path = self._place / f"steps-{number}"
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            found.append([json.loads(line) for line in lines if line.endswith("\n")])
        return found

    def wait(self, condition, numbers=tuple(range(COUNT))):
        """Waits until something is so for the notes of each process."""
        deadline = time.monotonic() + GUARD_S
        while not all(condition(self.notes()[number]) for number in numbers):
            for number, process in enumerate(self.processes):
                log = self._place / f"process-{number}.log"
                assert process.poll() is None, log.read_text()[-3000:] if log.exists() else number
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def step_on(self):
        done = [len(notes) for notes in self.notes()]
        self.wait_each(lambda number, notes: len(notes) >= done[number] + MORE_STEPS)

    def wait_each(self, condition):
        for number in range(COUNT):
            self.wait(lambda notes, n=number: condition(n, notes), (number,))

    def wait_until_asked(self):
        """Until each process has waited for a worker that is there now."""
        before = [notes[-1]["asked"] if notes else 0.0 for notes in self.notes()]
        self.wait(lambda notes: notes and notes[-1]["workers"])
        self.wait_each(lambda number, notes: notes[-1]["asked"] > before[number])

    def workers(self):
        return {name for notes in self.notes() for name in notes[-1]["workers"]}

    def end(self):
        (self._place / "end").touch()
        try:
            assert [process.wait(GUARD_S) for process in self.processes] == [0] * COUNT
        finally:
            launching.end(self.processes)


def kill(workers):
    for name in workers:
        os.kill(int(name.rpartition(" ")[2]), signal.SIGKILL)


def seconds_of_a_batch(data_dir):
    """How long a batch takes that this process decodes without workers, and without pauses."""
    local = service_job.pipeline(data_dir)
    batches = [local.step() for _ in range(5)]
    begun = time.monotonic()
    batches = [local.step() for _ in batches]
    return (time.monotonic() - begun) / len(batches)


def test_batches_of_two_processes_are_those_of_one_whatever_is_killed(
    data_dir, tmp_path, figure, full
):
    faults = {}  # by the time of each
    with ray_clusters.running(cores=4 if full else COUNT) as cluster:
        job = Job(data_dir, cluster.address, tmp_path)
        try:
            job.wait_until_asked()
            faults[time.time()] = "one worker SIGKILLed"
            kill([min(job.workers())])
            job.step_on()
            if full:
                killed = job.workers()
                job.wait_until_asked()
                killed |= job.workers()
                faults[time.time()] = "all workers SIGKILLed"
                kill(job.workers())
                job.step_on()
                job.wait(lambda notes: set(notes[-1]["workers"]) - killed)
                job.wait_until_asked()
                faults[time.time()] = "Ray stopped"
                cluster.stop()
                job.wait(lambda notes: not notes[-1]["workers"])
                job.step_on()
                faults[time.time()] = "Ray started again"
                cluster.start()
                job.wait_until_asked()
                job.step_on()
        finally:
            job.end()
    notes = job.notes()
    local = service_job.pipeline(data_dir, transform=elsewhere.noisy)  # the same rows, at once
    expected = [
        service_job.digests_of_parts(local.step(), COUNT) for _ in range(max(map(len, notes)))
    ]
    differ = [
        (number, step)
        for number, steps in enumerate(notes)
        for step, note in enumerate(steps)
        if note["digest"] != expected[step][number]
    ]
    limit = f"{LATE_S:.1f} s + a batch decoded here: {seconds_of_a_batch(data_dir):.2f} s alone"
    for (begun, fault), ended in zip(faults.items(), [*list(faults)[1:], np.inf], strict=True):
        seen = [note for steps in notes for note in steps if begun <= note["ended"] < ended]
        longest = max(note["seconds"] for note in seen)
        wrong = sum(begun <= notes[number][step]["ended"] < ended for number, step in differ)
        figure(
            f"service: {fault}, {COUNT} processes: batches that differ, longest wait for one",
            f"{wrong} of {len(seen):,}, {longest:.2f} s",
            f"0, {limit}",
        )
    assert not differ
    assert len(faults) == (4 if full else 1)
