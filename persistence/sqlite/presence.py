"""Whether the file that is open is still the one at its path.

Owns:      which file that is, and what is said when it is not.
Not here:  when to look (writing.py: before it writes; store.py: when asked whether the store is there).
Threads:   worker threads; each function blocks, for one look into the directory.

SQLite goes on writing to a file that was deleted: what it commits there is gone when the last connection is closed.
"""

import os
from pathlib import Path

from persistence.errors import StoreUnavailable


class OpenFile:
    """The file at ``path`` as it was when this was made: just after it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """Pass if the file is still there.

        Raises:
            StoreUnavailable: it was deleted or replaced, or its directory cannot be looked into.
        """
        try:
            if _identity(self.path) == self._identity:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from error
        raise StoreUnavailable(
            f"{self.path} was deleted or replaced while it was open: nothing more is kept; "
            "stop the broker and restore it"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 (half the time of path.stat(), before each append)
    return status.st_dev, status.st_ino
