"""Parse a command line into a command with its options; tyro's error boxes become sentences."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import tyro
from tyro import conf

from flowsim.cli.options import UsageError
from flowsim.errors import FlowsimError, unknown_name

_ABOUT = {
    "flowsim": "Gradient flow of contrastive losses, and the modality gap it explains. "
    "`flowsim --version` prints the version. Every command takes `--import FILE.py`, or a module, with "
    "parts, observables or claims that you wrote.",
    "flowsim heads": "The paper's methods on real pairs: heads on frozen features.",
    "flowsim clip": "flowsim's schedules on real CLIP models.",
}


@runtime_checkable
class Command(Protocol):
    """A dataclass of options that can be run."""

    def run(self) -> int:
        """Do the work; the exit code."""
        ...


def parse(argv: Sequence[str], prog: str, commands: dict[str, type[Command]]) -> Command:
    """The command with its options; SystemExit after help, `FlowsimError` for anything wrong."""
    if not argv:
        raise FlowsimError(f"Give a command: {', '.join(commands)}. See {prog} --help.")
    head = argv[0]
    if head not in commands and not head.startswith("-"):
        raise unknown_name("command", head, commands)
    if head.startswith("-") and head not in ("-h", "--help") and not head.startswith("--tyro"):
        raise FlowsimError(f"Option {head!r} must follow the command. Write {prog} COMMAND {head}.")
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            command, unknown = _tyro(argv, prog, commands)
    except UsageError as error:
        raise FlowsimError(str(error)) from None
    except SystemExit as stop:
        if stop.code:
            raise FlowsimError(f"{_unboxed(boxes.getvalue())} See {prog} {head} --help.") from None
        raise
    for token in unknown:
        if token.startswith("-"):
            raise unknown_name(f"option of {head}", token.partition("=")[0], options_of(head, prog, commands))
        raise FlowsimError(f"Unexpected argument {token!r}. See {prog} {head} --help.")
    return command


def options_of(command: str, prog: str, commands: dict[str, type[Command]]) -> list[str]:
    """The options of a command, from its help."""
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        _tyro([command, "--help"], prog, commands)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", plain)) - {"--help"})


def _tyro(argv: Sequence[str], prog: str, commands: dict[str, type[Command]]) -> tuple[Any, list[str]]:
    union: Any = None
    for name, cls in commands.items():
        # Help of a command shows its full text, the list of commands its first line.
        text = cls.__doc__ or ""
        if argv[0] == name:
            description = "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
        else:
            description = text.partition("\n")[0]
        command = Annotated[cls, conf.subcommand(name, description=description)]
        union = command if union is None else union | command
    return tyro.cli(
        union,
        prog=prog,
        description=_ABOUT[prog],
        args=list(argv),
        return_unknown_args=True,
        config=(conf.FlagCreatePairsOff,),
    )


def _unboxed(text: str) -> str:
    """The sentence in a box drawn by tyro: the lines below the title, up to the first rule."""
    lines = []
    for line in text.splitlines()[1:]:  # the first holds the title
        inner = line.strip("│| ")
        if re.search(r"\w", inner):
            lines.append(inner)
        elif lines:
            break
    sentence = " ".join(" ".join(lines).split()) or "These arguments cannot be read."
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")
