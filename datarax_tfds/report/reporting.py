"""Collects the reports of all processes, at once or from time to time."""

import logging
from collections.abc import Sequence
from contextlib import suppress

import jax

from datarax_tfds.report.report import HostReport, Report
from datarax_tfds.runtime.threads import decoding_threads
from datarax_tfds.runtime.timings import Timings
from sharding.hosts.agreement import gathered
from sharding.hosts.job import job

_log = logging.getLogger("datarax_tfds")


def report_here(timings: Timings) -> HostReport:
    """The report of this process."""
    cores = decoding_threads() - 1
    return HostReport.of(
        timings.totals(), jax.process_index(), job.coordinator.host, cores, timings.reads
    )


def report_of_all(timings: Timings, subject: str, processes: Sequence[int]) -> Report:
    """The report of all processes, each of which must call this."""
    notes = gathered(f"report of {subject}", report_here(timings).as_note(), processes)
    return Report.of_notes(notes)


class LoggedReports:
    """Logs the report of what happened since the last one.

    Each process tells the coordinator its own, and the first one logs what is known of all of them
    then. No process waits for another.

    Args:
        timings: The counters of the source.
        subject: The pipeline, for the log.
        processes: Those of the mesh.
    """

    def __init__(self, timings: Timings, subject: str, processes: Sequence[int]):
        self._timings, self._subject, self._processes = timings, subject, processes
        self._last = report_here(timings)

    def __call__(self) -> None:
        now = report_here(self._timings)
        own, self._last = now.since(self._last), now
        notes = [own.as_note()]
        if len(self._processes) > 1:
            # If the coordinator is gone, the next request that the run depends on raises.
            with suppress(ConnectionError):
                job.coordinator.put(f"report/{own.process}", notes[0])
                if own.process != min(self._processes):
                    return
                told = job.coordinator.notes("report")
                notes += [note for process, note in told.items() if process != own.process]
        _log.info("%s: %s", self._subject, Report.of_notes(notes).verdict)
