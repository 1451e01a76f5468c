"""What is fuzzed, by name."""

from collections.abc import Callable

from .client import client
from .header_blocks import header_blocks
from .pieces import pieces
from .requests import requests
from .server import server

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "server": server,
    "pieces": pieces,
    "header_blocks": header_blocks,
    "client": client,
    "requests": requests,
}
SHARES = {"server": 0.4, "pieces": 0.15, "header_blocks": 0.15, "client": 0.2, "requests": 0.1}
"""Of the time that all get together."""
