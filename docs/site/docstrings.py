"""An extension of griffe that shows the parameters in a docstring as a list."""

import re
from typing import Any

import griffe

_CODE = re.compile(r"(^```.*?^```|`[^`]+`)", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"^`?(\w+)`?: (?=\S)")


def with_lists(text: str, parameters: set[str]) -> str:
    """Returns a docstring in which each line that begins with the name of a parameter and a colon is an item of a list."""
    lines, in_list = list[str](), False
    for line in text.splitlines():
        found = _PARAMETER.match(line)
        if found and found[1] in parameters:
            lines += [*([] if in_list else [""]), f"- `{found[1]}`: {line[found.end() :]}"]
            in_list = True
        else:
            in_list = in_list and bool(line)
            lines.append(f"    {line}" if in_list else line)
    return "\n".join(lines)


class ParameterLists(griffe.Extension):
    """Rewrites the docstrings of functions and classes as they are loaded."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrites the docstring of a function."""
        self._rewrite(func, {each.name for each in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrites the docstring of a class, which describes the parameters of `__init__` and the fields of a data class."""
        made = cls.members.get("__init__")
        names = {each.name for each in made.parameters} if isinstance(made, griffe.Function) else set()
        self._rewrite(cls, names | set(cls.members))

    def _rewrite(self, thing: griffe.Function | griffe.Class, parameters: set[str]) -> None:
        if thing.docstring is not None:
            parts = _CODE.split(with_lists(thing.docstring.value, parameters))
            parts[::2] = [
                part.replace("[", "\\[") for part in parts[::2]
            ]  # a bracket outside of code would begin a link
            thing.docstring.value = "".join(parts)
