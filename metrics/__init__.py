"""What a broker process tells about itself: collectors, quantiles, the HTTP endpoint. Never imports ``trio_broker``."""

from metrics.calls import UNKNOWN_METHOD, CallMetrics
from metrics.http import serve_http
from metrics.messages import MessageMetrics
from metrics.pages import Readiness
from metrics.process import ProcessMetrics, build_plain_registry, build_registry
from metrics.state import State, StateMetrics
from metrics.store import StoreMetrics
from metrics.workers import WorkersMetrics, merge, pack

__all__ = [
    "UNKNOWN_METHOD",
    "CallMetrics",
    "MessageMetrics",
    "ProcessMetrics",
    "Readiness",
    "State",
    "StateMetrics",
    "StoreMetrics",
    "WorkersMetrics",
    "build_plain_registry",
    "build_registry",
    "merge",
    "pack",
    "serve_http",
]
