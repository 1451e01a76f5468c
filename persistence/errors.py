"""The errors of every store, in one tree. The broker turns them into its own (trio_broker/storage.py)."""


class StoreError(Exception):
    """A store could not do what it was asked; the text says why, for an operator."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or refuses. Nothing was changed: trying again is safe."""


class StoreFull(StoreError):
    """No space is left. Nothing was changed; reads still work."""


class BadContent(StoreError):
    """The batch was refused because of what a message in it holds. Nothing was changed."""


class OutcomeUnknown(StoreError):
    """The append may or may not have been applied, and the database could not be asked."""


class CannotOpen(StoreError):
    """The store cannot be opened as asked: a bad URL, a newer schema, a second broker on one file, no rights.

    Trying again does not help; the text says what does.
    """


class SchemaNotReady(CannotOpen):
    """The schema is missing or older, and it is not for who opens the store to change it. Helps: migrating it."""
