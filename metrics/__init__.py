"""What a broker process tells about itself: collectors, quantiles, the HTTP endpoint. Never imports ``trio_broker``."""

from metrics.calls import UNKNOWN_METHOD, CallMetrics
from metrics.http import serve_http
from metrics.pages import Readiness
from metrics.process import build_registry
from metrics.store import StoreMetrics

__all__ = ["UNKNOWN_METHOD", "CallMetrics", "Readiness", "StoreMetrics", "build_registry", "serve_http"]
