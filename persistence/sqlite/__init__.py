"""A store in one SQLite file: durable, embedded, no server.

Read from the top: store.py (the facade), opening.py (what is opened, in which order), schema.py (tables and their
versions), writing.py and sweeping.py (the one connection that writes), reading.py (the few that read),
connection.py (settings and errors), lock.py (one broker per file), backup.py (copies of a file in use).
"""
