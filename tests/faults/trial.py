"""What trials by hand share: a command line, a database, a cluster that is told of.

Owns:      `run`; the PostgreSQL that is started where none is given.
Not here:  the trials (rolling_kill.py, soak.py).
Threads:   one of the server's; the trial is in the trio thread.
"""

import argparse
import resource
import time
from collections.abc import Awaitable, Callable

import trio
from postgres_databases import Databases
from postgres_server import PostgresServer

DESCRIPTORS = 20_000
"""Files that may be open, as far as the machine lets it."""


def run(trial: Callable[[str, argparse.Namespace], Awaitable[None]], parser: argparse.ArgumentParser) -> None:
    """Run a trial on an empty database, of the server of ``--postgres`` or else of one of its own. Fails by raising."""
    parser.add_argument("--postgres", help="URL of a server, of a role that may create databases")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, DESCRIPTORS), most))
    if options.postgres:
        with Databases(options.postgres) as databases, databases.new() as url:
            trio.run(trial, url, options)
    else:
        with PostgresServer() as server, Databases(server.dsn()) as databases, databases.new() as url:
            trio.run(trial, url, options)


def say(began: float, what: str) -> None:
    """Print a line with the time since ``began`` (time.monotonic)."""
    print(f"{time.monotonic() - began:7.1f} s  {what}", flush=True)
