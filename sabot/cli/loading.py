"""Loads the App or RuntimeKernel that `module:app` or a file of SQL names, or explains why it cannot be loaded."""

import gc
import importlib
import inspect
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sabot.base.redaction import redacted_url
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.agents.kernel import RuntimeKernel
    from sabot.app import App

_HOW = "write module:app, as in examples.hello:app, or name a file of SQL: pipeline.sql"
_SQL = ".sql"
FUNCTIONS: ContextVar[tuple[str, ...]] = ContextVar("FUNCTIONS", default=())
"""The modules of --functions, whose functions scripts of SQL may call."""
_OURS = Path(__file__).parents[1].as_posix()


class WrongUse(UserError):
    """The error for a wrong command line, with exit code 2. `cause`: the error that the user's own code raised, or None."""

    def __init__(self, message: str, *, hint: str = "", cause: BaseException | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


def load_app(target: str) -> "App":
    """Returns the App that `module:attribute` names (by default the attribute `app`; the module may be in the current folder), or the app
    of a file of SQL statements (`pipeline.sql`).

    Raises WrongUse if the file has errors, if the module is missing or raises, or if the attribute is missing or not an App. A call of
    `app.run()` at module level that is not awaited is explained on stderr, and the App is returned nevertheless.
    """
    from sabot.app import App

    app: App = _load(target, App)
    return app


def load_program(target: str) -> "App | RuntimeKernel":
    """Imports and returns an App, as `load_app` does, or a RuntimeKernel. Raises WrongUse as `load_app` does."""
    from sabot.agents.kernel import RuntimeKernel
    from sabot.app import App

    program: App | RuntimeKernel = _load(target, (App, RuntimeKernel))
    return program


def _load(target: str, kinds: Any) -> Any:
    from sabot.app import IMPORTING

    if is_script(target):
        return _load_script(Path(target))
    if "://" in target:
        raise WrongUse(f"{redacted_url(target)!r} is an address and not the name of an app", hint=_HOW)
    name, _, attribute = target.partition(":")
    attribute = attribute or "app"
    if name.endswith(".py") or "/" in name:
        dotted = ".".join(Path(name.removesuffix(".py")).parts).lstrip("./")
        raise WrongUse(f"{name!r} is a file; the name of a module is needed", hint=f"write {dotted}:{attribute}")
    if not all(part.isidentifier() for part in [*name.split("."), *attribute.split(".")]):
        raise WrongUse(f"{target!r} is not the name of an app", hint=_HOW)
    folder = _import_from_here()
    importing = IMPORTING.set(True)
    try:
        with _explained_coroutines():
            module = _import(name)
            gc.collect()  # so that a coroutine in a reference cycle is reported here, and not at exit
    finally:
        IMPORTING.reset(importing)
    _refuse_another(module, Path(folder, *name.split(".")))
    return _find_program(module, attribute, kinds)


def is_script(target: str) -> bool:
    """Returns True if the name of an app is that of a file of SQL."""
    return target.endswith(_SQL) and "://" not in target


def _load_script(path: Path) -> "App":
    """Returns the app of a file of SQL. Its id is the name of the file, or that of SET 'pipeline.name'."""
    from sabot.api.stream import Stream
    from sabot.app import App
    from sabot.sql.options import app_name
    from sabot.sql.syntax.parser import parse
    from sabot.sql.syntax.text import SqlText

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise WrongUse(f"{path} cannot be read: {why}", hint="name a file of SQL in UTF-8") from error
    try:
        app = App(app_name(parse(SqlText(text, str(path)))) or path.stem)
        register_functions(app)
        rows = app.sql_session.run(text, {}, str(path))
    except UserError as error:
        raise WrongUse(error.message, hint=error.hint, cause=error) from error
    if isinstance(rows, Stream):
        raise WrongUse(
            f"{path}: the rows of the last query go nowhere",
            hint=f"write INSERT INTO a table, or print them: sabot sql {path}",
        )
    return app


def use_functions(modules: Sequence[str] | None) -> None:
    """Adds modules to those whose functions scripts of SQL may call."""
    if modules:
        FUNCTIONS.set((*FUNCTIONS.get(), *(each for each in modules if each not in FUNCTIONS.get())))


def functions_words() -> list[str]:
    """Returns the options before the name of a command that give another process the same functions."""
    return [word for module in FUNCTIONS.get() for word in ("--functions", module)]


def register_functions(app: "App") -> None:
    """Gives the SQL texts of an app the functions of the modules of --functions: those of `__all__`, or all public ones
    that the module defines. Raises WrongUse for a module that cannot be imported, and UserError for a function.
    """
    for name in FUNCTIONS.get():
        _import_from_here()
        module = _import(name)
        own = [
            key
            for key, each in vars(module).items()
            if not key.startswith("_") and inspect.isfunction(each) and each.__module__ == module.__name__
        ]
        for key in getattr(module, "__all__", own):
            app.register(key, getattr(module, key))


def _import_from_here() -> Path:
    """Lets modules of the current folder be imported, and returns this folder. Raises WrongUse if it is gone."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        raise WrongUse(
            "the current folder does not exist any more: it was removed or renamed", hint="change into another folder"
        ) from None
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise WrongUse(
                f"there is no module named {error.name!r}",
                hint=f"searched: {Path.cwd()} and the installed packages",
            ) from error
        raise _import_failed(name, error) from error
    except SystemExit as error:
        raise WrongUse(
            f"module {name} ends the process while it is imported, at {_place(error)}",
            hint="put the code that starts the program under: if __name__ == '__main__'",
            cause=error,
        ) from error
    except BaseException as error:
        raise _import_failed(name, error) from error


def _refuse_another(module: ModuleType, here: Path) -> None:
    """Raises WrongUse if a file of the current folder has the name of a module that Python has imported from elsewhere (signal, types).

    Python would never load that file.
    """
    mine = here / "__init__.py" if here.is_dir() else here.with_suffix(".py")
    loaded = getattr(module, "__file__", None)
    if mine.is_file() and (loaded is None or not Path(loaded).exists() or not mine.samefile(loaded)):
        raise WrongUse(
            f"{mine} is not imported: `import {module.__name__}` gives {loaded or 'a module that is built into Python'}",
            hint="rename the file",
        )


def _import_failed(name: str, error: BaseException) -> WrongUse:
    return WrongUse(f"module {name} cannot be imported: {_place(error)}: {_error_text(error)}", cause=error)


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _place(error: BaseException) -> str:
    """Returns file:line of the error, in the deepest frame of the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith((_OURS, "<frozen importlib", importlib.__file__))]
    here = [f for f in outside if f.filename.startswith(str(Path.cwd())) and "site-packages" not in f.filename]
    frame = (here or outside or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _find_program(module: ModuleType, attribute: str, kinds: Any) -> Any:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise WrongUse(f"{module.__name__} has no {attribute!r}", hint=_programs_in(module, kinds))
        found = getattr(found, part)
    if isinstance(found, kinds):
        return found
    if inspect.iscoroutine(found):
        found.close()
        raise WrongUse(
            f"{module.__name__}:{attribute} is a coroutine from a call that is not awaited, and not an App",
            hint=f"name the App itself: `sabot run` starts it; {_programs_in(module, kinds)}",
        )
    wanted = "App" if _only_apps(kinds) else "App or RuntimeKernel"
    raise WrongUse(
        f"{module.__name__}:{attribute} is of type {type(found).__name__} and not an {wanted}",
        hint=_programs_in(module, kinds),
    )


def _only_apps(kinds: Any) -> bool:
    return not isinstance(kinds, tuple)


def _programs_in(module: ModuleType, kinds: Any) -> str:
    """Returns a hint that lists the objects of these kinds in the module."""
    names = sorted(name for name, value in vars(module).items() if isinstance(value, kinds))
    if names:
        what = "Apps" if _only_apps(kinds) else "Apps and kernels"
        return f"its {what}: " + ", ".join(f"{module.__name__}:{name}" for name in names)
    if _only_apps(kinds):
        return f"there is no App in {module.__name__}; make one: app = sabot.App('name')"
    return f"there is no App and no RuntimeKernel in {module.__name__}: name the program whose jobs these are"


@contextmanager
def _explained_coroutines() -> Iterator[None]:
    """Replaces Python's "coroutine 'App.run' was never awaited" by a message that says what to do; other warnings pass unchanged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=r"coroutine 'App\.\w+' was never awaited")
        try:
            yield
        finally:
            seen = list(caught)
    for warning in seen:
        text = str(warning.message)
        if text.startswith("coroutine 'App."):
            call = text.split("'")[1].removeprefix("App.")
            print(
                f"sabot: {warning.filename}:{warning.lineno}: app.{call}() is called and not awaited, so it does "
                "nothing. `sabot run` starts the app itself: remove the line, or write app.main() under "
                "if __name__ == '__main__'",
                file=sys.stderr,
            )
        else:
            print(
                warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno),
                end="",
                file=sys.stderr,
            )
