"""Secrets that can be recognised wherever they come out, whole, in parts, or in another writing."""

import base64
import io
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

_PARTS = 0


def planted(between: str = "#@/%:?") -> str:
    """A secret with these characters in it. Each of its parts is found by `leaks`."""
    global _PARTS
    parts = []
    for _ in range(len(between) + 1):
        _PARTS += 1
        parts.append(f"Zq{_PARTS}vault")
    return "".join(part + mark for part, mark in zip(parts, f"{between} ", strict=True))[:-1]


def leaks(*outputs: object, whole: tuple[str, ...] = ()) -> list[str]:
    """Where in these texts, or files below these folders, a part of a planted secret stands; of those in `whole` also in base64."""
    found = []
    for output in outputs:
        if isinstance(output, Path):
            texts = {str(path): path.read_bytes().decode("latin-1") for path in output.rglob("*") if path.is_file()}
            texts |= {f"the name of {path}": str(path) for path in output.rglob("*")}
        else:
            texts = {"": output if isinstance(output, str) else repr(output)}
        for where, text in texts.items():
            found += [
                f"{where}: …{text[max(0, m.start() - 60) : m.end() + 20]}…" for m in re.finditer(r"Zq\d+vault", text)
            ]
            for secret in whole:
                forms = (base64.b64encode(secret.encode()).decode(), quote(secret, safe=""), secret.encode().hex())
                found += [f"{where}: {form}" for form in forms if form in text]
    return found


def printed(error: BaseException) -> str:
    """As Python prints it at the end of a program, without the lines of the program, which quote what the test has planted."""
    shown = traceback.TracebackException.from_exception(error, lookup_lines=False)
    each: traceback.TracebackException | None = shown
    seen: Mapping[int, bool] = {}
    while each is not None and id(each) not in seen:
        for frame in each.stack:
            frame._line = ""
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    text = io.StringIO()
    text.writelines(shown.format())
    return f"{text.getvalue()}\n{error!r}\n{error}\n{getattr(error, 'hint', '')}\n{error.args}"
