"""Python clients of a broker. Needs neither the stores nor the metrics of the server."""

from trio_broker.client.client import Client, Publishing, Subscription, connect
from trio_broker.client.tls import client_context

__all__ = ["Client", "Publishing", "Subscription", "client_context", "connect"]
