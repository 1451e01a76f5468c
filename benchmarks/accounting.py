"""What the metrics cost: a call, a message that is published, a delivery.

Owns:      driving the accounting of trio_broker/metering.py by itself, without a server.
Not here:  what a whole call costs (workloads.py).
"""

import time
import timeit
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

from metrics import MessageMetrics, State, StoreMetrics
from persistence import Appended, NewMessage
from persistence.memory import MemoryStore
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.deliveries import Deliveries
from trio_broker.measured_store import OPERATIONS, MeasuredStore
from trio_broker.message import Message
from trio_broker.metering import Metering
from trio_broker.rpc.call import Call
from trio_broker.rpc.status import OK

LIMIT_US = 1.0
"""What a call or a delivery may cost."""
REPEATS = 7
TIMES = 20_000
FLUSH_MESSAGES = 50


def measure_accounting() -> tuple[str, bool]:
    """Return a table, and whether everything stays below `LIMIT_US`."""
    lines = ["accounting, CPU us (least of 7 times 20,000)", ""]
    affordable = True
    for what, cost_us in _costs():
        affordable = affordable and cost_us < LIMIT_US
        lines.append(f"{cost_us:6.3f}  {what}")
    return "\n".join(lines), affordable


def _costs() -> Iterator[tuple[str, float]]:
    yield "a call that ends", _least_us(_one_call())
    yield f"a message published, {FLUSH_MESSAGES} in a flush", _least_us(_one_flush()) / FLUSH_MESSAGES
    yield "a delivery to a lone subscriber", _least_us(_deliveries(1))
    yield "a delivery to one of 100 subscribers", _least_us(_deliveries(100)) / 100
    yield "a delivery to a lone subscriber, of a subject with metrics of its own", _least_us(_deliveries(1, "orders"))


def _least_us(fn: Callable[[], object]) -> float:
    return min(timeit.repeat(fn, timer=time.process_time, number=TIMES, repeat=REPEATS)) / TIMES * 1e6


def _one_call() -> Callable[[], object]:
    metering = Metering(Config(), State)
    call = cast("Call", SimpleNamespace(method=SimpleNamespace(name="Publish"), status=OK, first_message_s=None))
    return lambda: metering.call_over(call, 0.0007)


def _one_flush() -> Callable[[], object]:
    operations, messages = StoreMetrics(OPERATIONS, tuple), MessageMetrics()
    store = MeasuredStore(MemoryStore(lambda: 0), operations, messages)
    flush = [NewMessage("orders", bytes(100), 3600)] * FLUSH_MESSAGES
    outcomes = [Appended(1, 1)] * FLUSH_MESSAGES

    def account() -> None:
        with store.measuring("append"):
            pass
        operations.flushed(len(flush), 0.0007)
        store.count(flush, outcomes)

    return account


def _deliveries(subscribers: int, *subjects: str) -> Callable[[], object]:
    messages, deliveries = MessageMetrics(subjects), Deliveries()
    deliveries.on_delivered = messages.delivered
    batch = Batch([Message("orders", 1, bytes(100), {}, 0)])
    takes = range(subscribers)

    def account() -> None:
        for _ in takes:
            if not batch.takers:  # as in `Subscription.receive_nowait`
                deliveries.took(batch)
            batch.takers += 1
        deliveries.settle()

    return account
