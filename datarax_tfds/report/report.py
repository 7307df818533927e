"""What `Pipeline.report` returns: where the time of each host goes, and what that means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from datarax_tfds.runtime.timings import PLACING, READING, WORKERS, Totals

# Waits below this share of the time are no more than the loop's own calls.
_READY = 0.02

# A host that waits so many times as long as most hosts, and for a tenth of its time, is slow.
_SLOWER, _SLOW = 2.0, 0.1

_COLUMNS = ("host", "steps", "seconds", "waiting", "placing")


@dataclass(frozen=True)
class HostReport:
    """Where the time of one process goes.

    Args:
        process: Its number.
        host: The name of its machine.
        cores: The cores that it may use.
        reads: Where it reads from.
        steps: The batches that it was handed.
        elapsed_s: From the first request for a batch to the end of the last one.
        waiting_s: Of these seconds, those in which the loop waited for a batch. Those of the steps
            themselves are the rest.
        stages: How long each stage took, in seconds. `placing` is part of `waiting_s`. The others
            run in several threads beside the loop, and are summed over the threads: `reading`,
            `decoding`, `map_fn`, `transform` and, of packed text, `encoding`; and `workers`, in
            which threads waited for workers, which run these stages elsewhere.
        read_bytes: Of stored records that it has read itself.
        read_records: How many records it has read itself.
        read_requests: In how many reads of a file or a store. Records that are stored in a row, and
            are needed at once, share one.
    """

    process: int
    host: str
    cores: int
    reads: str
    steps: int
    elapsed_s: float
    waiting_s: float
    stages: Mapping[str, float]
    read_bytes: int
    read_records: int
    read_requests: int = 0

    @classmethod
    def of(cls, totals: Totals, process: int, host: str, cores: int, reads: str) -> "HostReport":
        """The report of a process with these totals."""
        return cls(process, host, cores, reads, **asdict(totals))

    @property
    def waiting(self) -> float:
        """The share of the time in which the loop waited for batches, in `[0, 1]`."""
        return self.waiting_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """The share of each stage in the work of the threads, the largest first; without
        `placing`, which the loop does itself.
        """
        work = {stage: spent for stage, spent in self.stages.items() if stage != PLACING}
        total = sum(work.values()) or 1.0
        largest = sorted(work.items(), key=lambda item: -item[1])
        return {stage: spent / total for stage, spent in largest}

    @property
    def cause(self) -> str | None:
        """The stage for which the loop waits, if it waits; None if the records are on the devices,
        so that there are no stages. Workers run the stages that run here, so that `workers` is
        named only if nothing runs here.
        """
        if self.stages.get(PLACING, 0.0) > self.waiting_s / 2:
            return PLACING
        here = [stage for stage, share in self.shares.items() if share and stage != WORKERS]
        return next(iter(here or self.shares), None)

    @property
    def more_cores(self) -> int:
        """How many more cores would hide the work behind the steps, if it scales with cores."""
        working_s = max(self.elapsed_s - self.waiting_s, 1e-9)
        return math.ceil(self.cores * min(self.waiting_s / working_s, 1e6))

    def since(self, earlier: "HostReport") -> "HostReport":
        """What was counted after an earlier report."""
        stages = {stage: s - earlier.stages.get(stage, 0.0) for stage, s in self.stages.items()}
        counted = ("steps", "elapsed_s", "waiting_s", "read_bytes", "read_records", "read_requests")
        fields = {name: getattr(self, name) - getattr(earlier, name) for name in counted}
        return HostReport(self.process, self.host, self.cores, self.reads, stages=stages, **fields)

    @property
    def verdict(self) -> str:
        """What bounds this process, in words."""
        if not self.steps:
            return "no batch was asked for yet"
        if self.waiting < _READY:
            return f"compute-bound: batches were ready {1 - self.waiting:.1%} of the time"
        late = f"input-bound: steps waited {self.waiting:.0%} of the time"
        cause = self.cause
        if cause is None:
            return (
                f"{late}, for the calls that gather records on the devices; scan makes one call for"
                " many steps"
            )
        if cause == PLACING:
            return f"{late}, for copies to the devices; prefetch_to_device would hide them"
        if cause == WORKERS:
            return f"{late}, for workers; more workers, or more cores here, would hide it"
        # Without the time in which threads only wait for those who do the same work.
        here = {stage: s for stage, s in self.stages.items() if stage not in (PLACING, WORKERS)}
        alone = WORKERS not in self.stages
        share = here[cause] / (sum(here.values()) or 1.0)
        share = f"{share:.0%} of the work {'' if alone else 'here '}is {cause}"
        if cause == READING:
            return f"{late}; {share}, from {self.reads}"
        if not alone:  # how many cores the workers have is not known here
            return f"{late}; {share}; more workers, or more cores here, would hide it"
        cores = self.more_cores
        return f"{late}; {share}; {cores} more core{'s' * (cores != 1)} would hide it"

    def as_note(self) -> dict[str, Any]:
        """The fields in JSON types."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Report:
    """Where the time of a run goes, on each host. Print it for a table.

    Args:
        hosts: The reports of the processes, by their numbers.
    """

    hosts: tuple[HostReport, ...]

    @classmethod
    def of_notes(cls, notes: Sequence[Mapping[str, Any]]) -> "Report":
        """The report of the processes that have written these notes."""
        return cls(tuple(sorted((HostReport(**note) for note in notes), key=lambda h: h.process)))

    @property
    def slowest(self) -> HostReport:
        """The process that waits longest, for which the others wait, too."""
        return max(self.hosts, key=lambda host: host.waiting)

    @property
    def verdict(self) -> str:
        """What bounds the run, in words."""
        slowest = self.slowest
        others = [host.waiting for host in self.hosts if host is not slowest]
        verdict = slowest.verdict
        if others and slowest.waiting > max(_SLOW, _SLOWER * median(others)):
            return f"process {slowest.process} on {slowest.host} is slow: {verdict}"
        return verdict

    def since(self, earlier: "Report") -> "Report":
        """What was counted after an earlier report of the same pipeline."""
        before = {host.process: host for host in earlier.hosts}
        return Report(
            tuple(
                host.since(before[host.process]) if host.process in before else host
                for host in self.hosts
            )
        )

    def scalars(self, prefix: str = "input") -> dict[str, float]:
        """The numbers of the slowest process, for TensorBoard, Weights & Biases or CLU:

            writer.write_scalars(step, pipeline.report().scalars())

        Returns:
            `waiting`, a share in `[0, 1]`; `waiting_s`, `elapsed_s` and the seconds of each stage;
            and `read_bytes` and `read_requests`. The prefix and a slash stand before each name.
        """
        host = self.slowest
        seconds = {f"{prefix}/{stage}_s": spent for stage, spent in sorted(host.stages.items())}
        return {
            f"{prefix}/waiting": host.waiting,
            f"{prefix}/waiting_s": host.waiting_s,
            f"{prefix}/elapsed_s": host.elapsed_s,
            f"{prefix}/read_bytes": float(host.read_bytes),
            f"{prefix}/read_requests": float(host.read_requests),
            **seconds,
        }

    def __repr__(self) -> str:
        names = sorted({stage for host in self.hosts for stage in host.shares})
        rows = [[*_COLUMNS, *names, "MB read", "requests"]]
        for host in self.hosts:
            placing = host.stages.get(PLACING, 0.0) / (host.elapsed_s or 1.0)
            shares = [f"{host.shares.get(stage, 0.0):.1%}" for stage in names]
            named = f"{host.process} {host.host}"
            times = [f"{host.elapsed_s:.1f}", f"{host.waiting:.1%}", f"{placing:.1%}"]
            read = [f"{host.read_bytes / 1e6:.1f}", str(host.read_requests)]
            rows.append([named, str(host.steps), *times, *shares, *read])
        return "\n".join([*_aligned(rows), self.verdict])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
