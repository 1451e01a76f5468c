"""Say clearly when another module has taken the name of one of this project's packages.

Owns:      `require_own`.
Not here:  anything else: this runs before ``persistence`` or ``metrics`` is imported, and imports neither.
Threads:   any.

``persistence`` and ``metrics`` are names that the modules of a user's program may have too.
"""

from importlib.util import find_spec
from pathlib import Path


def require_own(name: str) -> None:
    """Return if Python finds this project's package ``name``, or none at all. Imports nothing.

    Raises:
        ImportError: it finds another module of that name; with its file, and what to do.
    """
    try:
        spec = find_spec(name)
    except ValueError:  # imported already, by somebody who made it by hand
        spec = None
        found = "a module made at run time"
    else:
        if spec is None:
            return  # the import that follows says so itself
        found = spec.origin or str(list(spec.submodule_search_locations or ()))
    own = Path(__file__).resolve().parent.parent / name / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != own:
        raise ImportError(
            f"the broker needs its own package {name!r} ({own}), but Python finds another one first: {found}. "
            f"Rename that one, or run the broker in a process of its own and use its client here.",
            name=name,
            path=found,
        )
