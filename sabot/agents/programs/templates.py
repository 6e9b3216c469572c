"""Templates of commands. `{field}` in a word of a command stands for a field of a record. No shell reads the words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from string import Formatter
from typing import Any

import pyarrow as pa

from sabot.codecs.records import encode_json
from sabot.errors import DataError, UserError, short_repr

_WORD_BYTES = (128 << 10) - 1  # the longest word that Linux gives a program (MAX_ARG_STRLEN)
_BRACES = "{field} is a field of the record, {place.city} one inside of it; {{ and }} are braces"
# The letters of the options whose next word is a script, by the programs that run it.
_SCRIPTS = dict.fromkeys(("sh", "ash", "bash", "dash", "ksh", "zsh", "fish", "su", "runuser", "script", "flock"), "c")
_SCRIPTS |= {"python": "c", "pypy": "c", "perl": "eE", "ruby": "e", "node": "ep", "php": "r", "lua": "e"}
# Programs that run the program which their words name, and what their own words look like: options, NAME=value, numbers.
_RUNNERS = {"env", "timeout", "nice", "nohup", "setsid", "stdbuf", "xargs", "sudo", "doas", "time", "ionice", "busybox"}
_OF_RUNNER = re.compile(r"-.*|\w+=.*|[\d.]+[smhd]?")


class CommandTemplate:
    """The template of an agent's command. A word of the command can contain fields of the record, such as
    "{place.city}".

    - `fields`: all fields that the words contain, each as a tuple of names, such as ("place", "city").
    - `program`: the name of the program, which is the first word without its folder.
    """

    def __init__(self, where: str, command: Sequence[str]) -> None:
        """Makes a template from the words of a command. `where` is the name of the agent, for error messages. Raises
        UserError if a word is not a valid template.
        """
        self.program = PurePath(command[0]).name
        ends = command.index("--") if "--" in command else len(command)
        self._words = [_TemplateWord(word, where, number < ends) for number, word in enumerate(command)]
        self.fields = [names for word in self._words for names in word.fields]
        self._check(where, command)

    def of(self, record: Any) -> list[str]:
        """Returns the words of the command for this record. Raises DataError if the record lacks a field, or if a value
        cannot be a part of a word: it begins with "-" where the program would read an option, it has a NUL character,
        or it is too long.
        """
        return [word.of(record) for word in self._words]

    def _check(self, where: str, command: Sequence[str]) -> None:
        if self._words[0].fields:
            raise UserError(
                f"{where}: the program {short_repr(command[0])} would be named by a record",
                hint="an agent for each program; its arguments may have fields",
            )
        runner = self.program if self.program in _RUNNERS else ""
        letters = program = ""
        for number, word in enumerate(self._words):
            text = command[number]
            if runner and word.fields and not letters and not _OF_RUNNER.fullmatch(text):
                raise UserError(
                    f"{where}: the program {short_repr(text)} behind {runner} would be named by a record",
                    hint="an agent for each program; its arguments may have fields",
                )
            option = rf"(?:-\w*[{letters}]\w*|--(?:command|eval|print)=?)"
            before = command[number - 1] if number else ""
            if letters and word.fields and (re.fullmatch(option, before) or re.match(option + r"\{", text)):
                raise UserError(
                    f"{where}: a record would be a part of the script of {program}, which runs what it says",
                    hint=f"""command=[…, "{program}", "-{letters[0]}", SCRIPT, …, "{{field}}"]: a script reads its arguments, in a """
                    """shell as in sh -c 'echo "$1"' sh {field}""",
                )
            name = re.sub(r"[\d.]+$", "", PurePath(text).name)
            if not word.fields and name in _SCRIPTS:
                letters, program = _SCRIPTS[name], PurePath(text).name
            if number and not _OF_RUNNER.fullmatch(text) and PurePath(text).name not in _RUNNERS:
                runner = ""

    def check_schema(self, schema: pa.Schema, where: str, known: Sequence[str] = ()) -> None:
        """Raises UserError unless records with this schema have all fields that the words contain.

        - `where`: the name of the agent, for the error message.
        - `known`: the names of fields that do not come from the record.
        """
        for names in self.fields:
            if names[0] not in (*schema.names, *known):
                raise UserError(
                    f"{where}: {{{'.'.join(names)}}} is no field of schema=", hint=f"it has {', '.join(schema.names)}"
                )


class _TemplateWord:
    """One word of a CommandTemplate. It is made of texts and fields in turn: text 0, field 0, text 1, field 1, and so
    on, and a text at the end.

    - `fields`: the fields, each as a tuple of names, such as ("place", "city").
    - `may_be_option`: True if the program may read the word as an option, because no word "--" of the command comes
      before it. If such a word begins with a field, a value of the field that begins with "-" is refused.
    """

    def __init__(self, template: str, where: str, may_be_option: bool) -> None:
        """Parses a word of a command. `template` is the word with its fields in braces, and `where` is the name of the
        agent for error messages. Raises UserError if the word is not a valid template.
        """
        self._texts, self.fields = [""], list[tuple[str, ...]]()
        where = f"{where}: the word {short_repr(template)}"
        try:
            for text, field, form, conversion in Formatter().parse(template):
                self._texts[-1] += text
                if field is None:
                    continue
                names = tuple(field.split("."))
                if form or conversion or not all(names) or any("[" in each or each.isdigit() for each in names):
                    raise UserError(f"{where}: {{{field}}} names no field of a record", hint=_BRACES)
                self.fields.append(names)
                self._texts.append("")
        except ValueError as error:
            raise UserError(f"{where}: {error}", hint=_BRACES) from error
        self._checks_option = may_be_option and bool(self.fields) and not self._texts[0]

    def of(self, record: Any) -> str:
        """Returns the word with the values of this record. Raises the errors of `CommandTemplate.of`."""
        made = self._texts[0]
        for names, text in zip(self.fields, self._texts[1:], strict=True):
            value = _field(record, names)
            if self._checks_option and not made and isinstance(value, str) and value.startswith("-"):
                raise DataError(
                    f"field {'.'.join(names)!r} begins with '-', which the program would take for an option",
                    hint='"--" before it in the command, where the program knows that; or a text: "Task: {task}"; or stdin=True',
                )
            made += value if isinstance(value, str) else encode_json(value).decode()
            if wrong := _unfit(made):
                raise DataError(
                    f"field {'.'.join(names)!r} makes a word that {wrong}, which no program can be given",
                    hint="give the record on stdin: stdin=True",
                )
            made += text
        return made


def _unfit(word: str) -> str:
    """Returns the reason why the operating system would refuse this word of a command, as a part of a message. Returns
    "" if it would accept the word.
    """
    try:
        size = len(word.encode())
    except UnicodeEncodeError:
        return "has half a surrogate pair"
    return "has a null character" if "\0" in word else f"has {size:,} bytes" if size > _WORD_BYTES else ""


def _field(record: Any, names: tuple[str, ...]) -> Any:
    value = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        raise DataError(f"field {'.'.join(names)!r}, which the command has, is missing or null")
    return value
