"""Which versions of a schema this release works with: the same for every store.

Owns:      the refusals of what is too new or too old.
Not here:  the schemas and their steps (schema.py of each store).
Threads:   any.
"""

from persistence.errors import CannotOpen


def check_version(place: object, version: int, latest: int, *, migrate: bool) -> None:
    """Pass if the schema at ``place`` is ``latest``, or older and about to be migrated.

    Raises:
        CannotOpen: with what to do.
    """
    if version > latest:
        raise CannotOpen(
            f"{place} has schema version {version}, and this release knows versions up to {latest}; "
            "use the release that upgraded it, or a later one"
        )
    if version < latest and not migrate:
        raise CannotOpen(
            f"{place} has schema version {version}, and this release needs {latest}; start once with migration, "
            "or run 'trio-broker migrate up'"
        )
