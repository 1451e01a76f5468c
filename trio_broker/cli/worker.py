"""``python -m trio_broker.cli.worker``: one worker of ``trio-broker serve --workers N``. Not for people.

Owns:      what a worker gets on its standard input, and how its failure is told.
Not here:  who starts it (trio_broker/workers/member.py), what it does (trio_broker/serve.py).

Standard input is its channel to the supervisor. Its first message has the settings, checked and merged from flags,
variables and files; the environment is read only by libraries.
"""

import os
import signal
import socket
from typing import NoReturn

import trio

from persistence import CannotOpen
from trio_broker.cli.running import Failure, failed, leave, leaves
from trio_broker.config import Config
from trio_broker.line_budget import LineBudget
from trio_broker.logs import configure_logging
from trio_broker.serve import serve
from trio_broker.workers.channel import Channel
from trio_broker.workers.worker import Door, WorkerFront, peering


def main() -> NoReturn:
    """Run a worker to its end."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until it can be answered
    channel = Channel(socket.socket(fileno=os.dup(0)))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    leave(trio.run(_work, channel))


async def _work(channel: Channel) -> int:
    """Return the exit code. What is not a failure of a known kind is a bug, and raised."""
    message = await channel.receive()
    if message is None:
        return 0
    config = peering(Config.model_validate(message.values["config"]), message.values["number"])
    inner, outer = message.descriptors
    budget = configure_logging(config.log_format, config.log_level, worker=message.values["number"])
    try:
        return await _serve(config, budget, WorkerFront(channel, Door(inner, outer)))
    except (Exception, BaseExceptionGroup) as error:
        failure = failed(error)
        if failure is None:
            raise
        exit_code, text = failure
        channel.send("failed", {"text": text, "exit_code": exit_code})
        return exit_code


async def _serve(config: Config, budget: LineBudget, front: WorkerFront) -> int:
    try:
        return await serve(config, budget, front)
    except* CannotOpen as group:
        failure = next(leaves(group))
    raise Failure(str(failure)) from failure


if __name__ == "__main__":
    main()
