"""``python tests/e2e/memory_trial.py HOST:PORT [LOAD ...]``: put more on a broker than its memory holds.

Owns:      the command line: each load, an ordinary client beside it, and whether everything is served afterwards.
Not here:  the loads (e2e_memory.py); the broker, which is started with a limit, such as ``podman run --memory 128m``,
           and is to be found running, and never killed for its memory, when this ends with 0.
"""

import resource
import sys

import trio
from e2e_memory import LOADS, everything_is_served, neighbour


async def main(address: str, names: list[str]) -> None:
    for name in names or LOADS:
        async with neighbour(address) as small:
            outcomes = await LOADS[name](address)
        await everything_is_served(address)
        print(f"{name}: {dict(outcomes)}; small publishes meanwhile: {dict(small)}; all is served again", flush=True)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000), most))
    trio.run(main, sys.argv[1], sys.argv[2:])
