"""The command `datarax-tfds workers`: shows who decodes for training jobs, on a Ray cluster."""

import sys
from dataclasses import dataclass
from typing import Any

from datarax_tfds.cli.terminal import doing, print_json, print_table

_ANSWER_S = 10.0


@dataclass(frozen=True)
class Command:
    """Shows the workers that decode records on a Ray cluster: where each is, for which process,
    what it reads and how fast, and what it was refused for. Ends with 1 if a worker was refused.

    Args:
        address: The cluster, as HOST:PORT; by default, the one that this machine belongs to.
        json: Print a list in JSON.
    """

    address: str = "auto"
    json: bool = False

    def run(self) -> int:
        """Prints the workers."""
        doing(f"asking the workers of the cluster {self.address}")
        workers = _asked(self.address)
        if self.json:
            print_json(workers)
        else:
            _print(workers)
        return int(any(each.get("refused") for each in workers))


def _asked(address: str) -> list[dict[str, Any]]:
    """What the workers say of themselves."""
    try:
        import ray
    except ModuleNotFoundError as error:
        from sharding.checks import refused

        raise refused(
            ModuleNotFoundError,
            "workers",
            "Ray is not installed.",
            python=sys.executable,
            fix="install it, with pip install 'datarax-tfds[service]'",
        ) from error

    from ray.exceptions import RayError

    from datarax_tfds.service.ray_driver import NAMESPACE, require_answer

    try:
        require_answer(address)
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        from sharding.checks import refused

        raise refused(
            ConnectionError,
            "workers",
            "there is no connection to a Ray cluster.",
            address=address,
            error=str(error).splitlines()[0],
            fix="let this machine join the cluster, with ray start --address=HOST:PORT"
            " --num-cpus=0. If the cluster has a token, set RAY_AUTH_MODE=token here, too",
        ) from error
    try:
        named = {name: ray.get_actor(name) for name in ray.util.list_named_actors()}
        calls = {worker.status.remote(): name for name, worker in named.items()}
        if calls:
            ray.wait(list(calls), num_returns=len(calls), timeout=_ANSWER_S)
        found = [_answer(call, name) for call, name in calls.items()]
        return sorted(found, key=lambda each: (each["node"], each["pid"] or 0))
    finally:
        ray.shutdown()


def _answer(call: Any, name: str) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(call, timeout=0)
    except (RayError, TimeoutError) as error:
        problem = f"{type(error).__name__}: it does not answer"
        return {"node": name, "pid": None, "error": problem}


def _print(workers: list[dict[str, Any]]) -> None:
    rows = [
        [
            each["node"],
            each["pid"],
            each.get("started_by"),
            ", ".join(each.get("reads", ())) or each.get("error"),
            each.get("records"),
            round(each.get("records_per_s", 0)),
            "; ".join(each.get("refused", ())) or None,
        ]
        for each in workers
    ]
    columns = ["machine", "pid", "for", "reads", "records", "records/s", "refused"]
    print_table(columns, rows, title=f"{len(rows)} workers")
