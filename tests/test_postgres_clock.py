"""The database's clock that the contract suite turns."""

import psycopg
from postgres_clock import turned_database
from postgres_databases import Databases

NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


def test_it_says_what_it_was_told_to_every_connection(postgres: Databases) -> None:
    with turned_database(postgres) as clock, psycopg.connect(clock.url, autocommit=True) as beside:
        for now_us in (0, 1_700_000_000_123_456, 33_000_000_000_000_001, 1):
            clock.turn(now_us)
            assert postgres.execute(NOW, url=clock.url) == [(now_us,)]
            assert beside.execute(NOW, prepare=True).fetchone() == (now_us,)


def test_postgresqls_own_is_still_there_by_its_full_name(postgres: Databases) -> None:
    with turned_database(postgres) as clock:
        assert postgres.execute("SELECT pg_catalog.clock_timestamp() > clock_timestamp()", url=clock.url) == [(True,)]


def test_databases_without_it_are_as_they_were(postgres: Databases, postgres_url: str) -> None:
    with turned_database(postgres):
        assert postgres.execute("SELECT clock_timestamp() > '2020-01-01'", url=postgres_url) == [(True,)]
