"""Translate messages of the library for the command line.

The library names arguments of Python. Here "Argument `t1` must be ..." becomes "Option `--t1` must be ...", and advice
such as `force=True` or `split=None` becomes options.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

#: Function that a message may recommend -> command.
_COMMANDS = {"fs.clip.study": "flowsim clip study", "fs.clip.early_changes": "flowsim clip early"}

_ARGUMENT = re.compile(r"^Argument `(\w+)`")
_IMPORT = re.compile(r"(?:Import it first: from (\S+) import \w+|Define it as in the session that wrote this)\.")
_EXAMPLE = re.compile(r"(?<=Use e\.g\. )(\w+)=(\S+?)(?=[.,:;]?(?:\s|$))")
_NAME = re.compile(r"(?<!Argument )(?<!Setting )`([\w.]+)(?:=([^`]*))?`")


def in_options(message: str, options: Collection[str], given: Mapping[str, Any], settings: Collection[str] = ()) -> str:
    """The message with options instead of arguments.

    Args:
        message: A message of the library.
        options: Options of the command, e.g. "--t1".
        given: Values of the options that the user gave, by field. An argument that is not among them has its value
            from elsewhere, e.g. from `--set`.
        settings: Names that `--set NAME=VALUE` of the command takes.

    Returns:
        The message for the command line.
    """

    def flag(name: str) -> str | None:
        found = "--" + name.replace("_", "-")
        return found if found in options else None

    def cure(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        option = flag(name)
        if option is None:
            if value is not None and name in settings:
                return f"`--set {name}={value.lower() if value in ('None', 'True', 'False') else value}`"
            return f"`{_COMMANDS.get(name, match[0][1:-1])}`"
        if value is None or value == "True":
            return f"`{option}`"
        return f"no `{option}`" if value == "None" else f"`{option} {value}`"

    def example(match: re.Match[str]) -> str:
        option = flag(match[1])
        return match[0] if option is None else f"{option} {match[2]}"

    message = _IMPORT.sub(lambda found: f"Add --import {found[1] or 'FILE.py, a file that defines it'}.", message)
    argument = _ARGUMENT.match(message)
    if argument is not None:
        option = flag(argument[1])
        if option is None or argument[1] not in given:
            return message
        message = f"Option `{option}`{message[argument.end() :]}"
    return _NAME.sub(cure, _EXAMPLE.sub(example, message))


def given_options(command: Any) -> dict[str, Any]:
    """The fields of a command that differ from their defaults, with their values."""
    fields = [(field, getattr(command, field.name)) for field in dataclasses.fields(command)]
    return {field.name: value for field, value in fields if value != field.default}
