"""A store in a keyspace of Cassandra (or ScyllaDB, on which it is untried) that several brokers may share.

Read from the top: store.py (the facade), opening.py with address.py (what is opened, in which order, by which URL),
schema.py (tables and their versions), buckets.py (the partitions of a log), writing.py with shares.py and chunks.py
(appending, and how messages are kept), keys.py, reading.py, purging.py, restoring.py, registers.py, wakeups.py,
clock.py; and what these stand on: steps.py (what can be asked for, and what a missing answer means), database.py
(asking), connection.py (the driver).
"""
