"""A store in a PostgreSQL database that several brokers may share.

Read from the top: store.py (the facade), opening.py (what is opened, in which order), schema.py (tables and their
versions), writing.py with flush.py and outcome.py (the one connection that appends, and what became of a flush whose
answer was lost), pool.py with reading.py, registers.py and sweeping.py (the few connections that do the rest), hints.py
and wakeups.py (what was appended, said and heard), connection.py and patience.py (settings, errors, how long anything
is waited for), arrays.py (a wire format).
"""
