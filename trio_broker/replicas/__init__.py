"""Other brokers on the same log: who is alive, and streams of what each of them commits.

Read membership.py (who there is), tails.py (what is told), links.py (what is heard), replicas.py (all together).
Nothing here is needed for correctness: what is not heard of in time is read from the log (trio_broker/hearing.py).
"""

from trio_broker.replicas.replicas import Replicas, run_replicas

__all__ = ["Replicas", "run_replicas"]
