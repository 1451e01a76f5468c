"""A deterministic simulation of the broker: one seed is one scenario, and runs the same way each time.

The broker, its committer, fan-out, positions and replay are the production code. The store, the clock and the clients
are simulated, and misbehave as the seed says: `store.py`, `publishers.py`, `subscribers.py`. What the broker promises
(DESIGN, section 4) is checked against what the store knows: `checker.py`. docs/SIMULATION.md says how to replay a seed.
"""
