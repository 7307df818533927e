"""Hands the counters of a pipeline to Prometheus."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from datarax_tfds.pipeline import Pipeline
from datarax_tfds.report.reporting import report_here
from sharding.checks import refused

_COUNTS = {
    "steps": ("steps", "Batches that were handed out."),
    "elapsed_seconds": ("elapsed_s", "From the first request to the last batch."),
    "waiting_seconds": ("waiting_s", "In which the loop waited for batches."),
    "read_bytes": ("read_bytes", "Of stored records."),
    "read_requests": ("read_requests", "Reads of files or a store."),
}


class PipelineCollector:
    """A collector of the package `prometheus_client`, for the counters of one process.

        from prometheus_client import REGISTRY, start_http_server

        REGISTRY.register(PipelineCollector(pipeline))
        start_http_server(9400, addr="127.0.0.1")

    It counts seconds, steps, bytes and requests, as `HostReport` does, since the sources were
    built: `datarax_tfds_steps_total`, `datarax_tfds_elapsed_seconds_total`,
    `datarax_tfds_waiting_seconds_total`, `datarax_tfds_read_bytes_total`,
    `datarax_tfds_read_requests_total` and, with a label `stage`,
    `datarax_tfds_stage_seconds_total`. All have a label `source`, its name.

    Args:
        *pipelines: All pipelines of the process, because a registry takes each metric from one
            collector. Their sources should have different names.

    Raises:
        TypeError: One of them is not a Pipeline.
        ModuleNotFoundError: `prometheus_client` is not installed.
    """

    def __init__(self, *pipelines: Pipeline):
        for pipeline in pipelines:
            if not isinstance(pipeline, Pipeline):
                raise refused(
                    TypeError,
                    "PipelineCollector",
                    f"each of pipelines must be a Pipeline, got {type(pipeline).__name__}.",
                    pipeline=type(pipeline).__name__,
                    fix="pass pipelines, as Pipeline(source=source, batch_size=128)",
                )
        if find_spec("prometheus_client") is None:
            raise refused(
                ModuleNotFoundError,
                "PipelineCollector",
                "prometheus_client is not installed.",
                module="prometheus_client",
                fix="pip install 'datarax-tfds[prometheus]', or write pipeline.report().scalars()"
                " to another system",
            )
        self._timings = {each.source.name: each.source.records.timings for each in pipelines}

    def collect(self) -> Iterator[Any]:
        """Yields the metrics; `prometheus_client` calls it."""
        from prometheus_client.core import CounterMetricFamily  # an extra

        here = {name: report_here(timings) for name, timings in self._timings.items()}
        for name, (field, text) in _COUNTS.items():
            family = CounterMetricFamily(f"datarax_tfds_{name}", text, labels=["source"])
            for source, report in here.items():
                family.add_metric([source], getattr(report, field))
            yield family
        stages = CounterMetricFamily(
            "datarax_tfds_stage_seconds",
            "In each stage, summed over threads.",
            labels=["source", "stage"],
        )
        for source, report in here.items():
            for stage, seconds in report.stages.items():
                stages.add_metric([source, stage], seconds)
        yield stages
