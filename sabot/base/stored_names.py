"""The names under which classes and fields of Sabot are written to disk.

A checkpoint recognises a step by a digest that contains names of classes and fields (`plan.paths`), and describes the
window of a step by the name of its class. A journal and a dead letter contain the class name of an error. Files
outlive a rename, so code that writes such a name calls `stored_name` or `stored_field`. A change that renames a class
or a field adds the old name to the tables below. `tests/unit/test_stored_names.py` holds all names that have been
written, and fails if one of them changes.
"""

CLASSES: dict[str, str] = {"AgentRunError": "AgentError", "AppLocked": "JobLocked"}
"""The name on disk of each class that was renamed, by its name in the code: `{"AppLocked": "JobLocked"}`."""

FIELDS: dict[str, dict[str, str]] = {}
"""The names on disk of renamed fields, by class: `{"PatternStep": {"is_greedy": "greedy"}}`. The class has its name in the code."""


def stored_name(kind: type) -> str:
    """Returns the name of a class on disk. A class outside of Sabot has its own name, even if one of Sabot's classes
    has the same.
    """
    name = kind.__name__
    return CLASSES.get(name, name) if kind.__module__.partition(".")[0] == "sabot" else name


def stored_field(kind: type, name: str) -> str:
    """Returns the name on disk of a field of `kind`, a class of Sabot. A subclass inherits the names of its bases."""
    for base in kind.__mro__:
        if stored := FIELDS.get(base.__name__, {}).get(name):
            return stored
    return name
