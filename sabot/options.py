"""Options that are declared once: the type, the default and the help of each stand in one annotation.

    class AgentOptions(TypedDict, total=False):
        key: Annotated[str | None, Option(None, "the field of a record whose value owns the state")]

A function takes them as `**options: Unpack[AgentOptions]`, which type checkers and editors spell out. `spells_out` does the same for
`inspect.signature` and `help`, and `with_defaults` refuses a name that nobody has declared.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sabot.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Option:
    """The default of an option, and the line of help for it, which begins with a noun."""

    default: Any
    help: str


def options_of(declared: type) -> dict[str, Option]:
    """Returns the options of a class, by name, in the order in which they are declared."""
    return {name: hint.__metadata__[0] for name, hint in declared.__annotations__.items()}


def with_defaults(where: str, declared: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options, those that are not given with their default. Raises UserError for a name that is not declared."""
    known = options_of(declared)
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"{where} has no option {', '.join(unknown)}", hint=f"it has {', '.join(sorted(known))}")
    return {name: option.default for name, option in known.items()} | dict(given)


def spells_out(declared: type) -> Callable[[F], F]:
    """Gives a function whose last parameter is `**options` a signature and a docstring with each option of `declared`."""

    def apply(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        known = options_of(declared)
        kind = inspect.Parameter.KEYWORD_ONLY
        more = [
            inspect.Parameter(name, kind, default=each.default, annotation=declared.__annotations__[name].__origin__)
            for name, each in known.items()
        ]
        target: Any = function
        target.__signature__ = signature.replace(parameters=[*own, *more])
        lines = "\n".join(f"        `{name}`: {each.help}." for name, each in known.items())
        target.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n{lines}\n        "
        return function

    return apply
