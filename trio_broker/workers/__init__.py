"""Several worker processes behind one port: ``trio-broker serve --workers N``.

The process that the user starts is the supervisor (supervisor.py). It opens no store and speaks no gRPC; it starts the
workers, of which each is a broker in a process of its own, accepts clients and hands each connection to the worker that
has the fewest (doorman.py), gathers what they tell, and starts one again that ends. A worker is seen from here as a
`Member` (member.py); how it sees the supervisor is worker.py. Between them is a `Channel` (channel.py).
"""
