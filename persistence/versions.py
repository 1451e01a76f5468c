"""Which versions of a schema this release works with: the same for every store.

Owns:      the refusals of what is too new or too old.
Not here:  the schemas and their steps (schema.py of each store).
Threads:   any.
"""

from persistence.errors import CannotOpen, SchemaNotReady


def check_version(place: object, version: int, latest: int, *, migrate: bool) -> None:
    """Pass if the schema at ``place`` is ``latest``, or older and about to be migrated.

    Raises:
        CannotOpen: it is newer.
        SchemaNotReady: it is older, or missing, and ``migrate`` is false.
    """
    if version > latest:
        raise CannotOpen(
            f"{place} has schema version {version}, and this release knows versions up to {latest}; "
            "use the release that upgraded it, or a later one"
        )
    if version < latest and not migrate:
        has = f"has schema version {version}" if version else "has no schema yet"
        raise SchemaNotReady(
            f"{place} {has}, and this release needs version {latest}: run 'trio-broker migrate up', "
            "or start a broker once without --no-migrate"
        )
