"""Python clients of a broker. Needs neither the stores nor the metrics of the server."""

from trio_broker.client.client import Client, Publishing, Subscription, connect

__all__ = ["Client", "Publishing", "Subscription", "connect"]
