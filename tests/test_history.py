"""Any history of steps, saves, kills and other hosts delivers each record once, in one sequence."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from datarax_tfds.history.audit import audit
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import Sampler
from datarax_tfds.state.state import Identity, cursor_from_state, to_state


class History(RuleBasedStateMachine):
    """One job, as a model: what it delivers, and what its logs and its last save hold."""

    policy = "wrap"

    @initialize(
        length=st.integers(1, 40), seed=st.integers(0, 9), blocks=st.booleans(), data=st.data()
    )
    def begin(self, length, seed, blocks, data):
        order = BlockOrder(length, seed, 3, 12) if blocks else Order(length, seed)
        self.sampler = Sampler(order, seed)
        self.identity = Identity(
            dataset="model/1.0.0",
            split=f"train[0:{length}]",
            records=length,
            fingerprint="0",
            features="0",
            shuffle=True,
            seed=seed,
            remainder=self.policy,
            order=order.version,
        )
        self.lines, self.runs = [], 0
        self.delivered: list[int] = []  # numbers, in the order in which the model saw them
        self.kept = (json.dumps(to_state(Cursor(), self.identity)), 0)
        self.restart(data)

    @rule(data=st.data())
    def restart(self, data):
        """Killed, and gone on with from the last save: on other hosts, by other batches."""
        state, count = self.kept
        del self.delivered[count:]
        self.cursor = cursor_from_state(json.loads(state), self.identity, "model")
        # A batch of `wrap` spans up to three epochs: more would only take longer.
        epochs = 1 if self.policy == "drop" else 2
        most = min(50, epochs * self.identity.records)
        self.hosts = data.draw(st.integers(1, min(4, most)), "hosts")
        size = self.hosts * data.draw(st.integers(1, max(1, most // self.hosts)), "rows each")
        self.schedule = Schedule(self.identity.records, size, self.policy)
        self.runs += 1
        begins = {"format": 1, "batch_size": size, "state": self.state()}
        self.lines.append(json.dumps({"run": str(self.runs), "begins": begins}))

    @rule(steps=st.integers(1, 7))
    def step(self, steps):
        for _ in range(steps):
            batch = self.sampler.at(self.schedule, self.cursor)
            share = self.schedule.batch_size // self.hosts
            parts = [
                batch.record_numbers(slice(n * share, (n + 1) * share)) for n in range(self.hosts)
            ]
            numbers = np.concatenate(parts)
            assert np.array_equal(numbers, batch.record_numbers())
            rows = np.where(np.arange(len(numbers)) < batch.records, numbers, -1).tolist()
            self.delivered += rows[: batch.records]
            self.cursor = self.schedule.after(self.cursor)
            assert self.cursor == batch.following.cursor
            at = [self.cursor.epoch, self.cursor.index]
            self.lines.append(json.dumps({"run": str(self.runs), "at": at, "rows": [[0, rows]]}))

    @rule()
    def save(self):
        self.kept = (json.dumps(self.state()), len(self.delivered))

    def state(self):
        return to_state(self.cursor, self.identity)

    def teardown(self):
        if not hasattr(self, "lines"):
            return
        found = audit(self.lines)
        assert found.sound, str(found)
        assert found.reached == self.cursor
        length, order = self.identity.records, self.sampler.order
        epochs = [order.host_numbers(n, 0, length).tolist() for n in range(self.cursor.epoch + 1)]
        if self.policy != "drop":
            whole = [number for epoch in epochs for number in epoch]
            assert self.delivered == whole[: self.cursor.epoch * length + self.cursor.index]
            return
        left_out = {
            (span.epoch, at) for span in found.left_out for at in range(span.start, span.stop)
        }
        expected = [
            number
            for epoch, numbers in enumerate(epochs)
            for at, number in enumerate(numbers)
            if (epoch, at) < (self.cursor.epoch, self.cursor.index) and (epoch, at) not in left_out
        ]
        assert self.delivered == expected


@pytest.mark.parametrize("policy", ["wrap", "pad", "drop"])
def test_any_history_delivers_each_record_once(policy, full):
    machine = type(f"History_{policy}", (History,), {"policy": policy})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=300 if full else 15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
