"""The entry point: chooses the command, runs it, and turns every outcome into an exit code and one sentence.

Bad input gives one sentence on stderr and exit code 2, and nothing is written. Commands are dataclasses that tyro
fills; each imports what it needs when it runs, so that help is fast.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Collection, Sequence

from flowsim.cli.animate import Animate
from flowsim.cli.check import Check
from flowsim.cli.claims import Claims
from flowsim.cli.clip import CLIP_COMMANDS, Clip
from flowsim.cli.clip_options import TrainingOptions
from flowsim.cli.compare import Compare
from flowsim.cli.doctor import Doctor
from flowsim.cli.heads import HEADS_COMMANDS, Heads
from flowsim.cli.heads_options import HeadsOptions
from flowsim.cli.imports import current_folder_first, imported, split_imports
from flowsim.cli.lab import Lab
from flowsim.cli.measure import Measure
from flowsim.cli.output import EXIT_BAD_INPUT, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, say
from flowsim.cli.parsing import Command, options_of, parse
from flowsim.cli.reproduce import Reproduce
from flowsim.cli.simulate import Simulate
from flowsim.cli.sweep import Sweep
from flowsim.cli.words import given_options, in_options
from flowsim.errors import FlowsimError

COMMANDS: dict[str, type[Command]] = {
    "reproduce": Reproduce,
    "claims": Claims,
    "simulate": Simulate,
    "sweep": Sweep,
    "animate": Animate,
    "compare": Compare,
    "measure": Measure,
    "doctor": Doctor,
    "lab": Lab,
    "check": Check,
    "heads": Heads,
    "clip": Clip,
}
#: Commands that have commands of their own.
GROUPS: dict[str, dict[str, type[Command]]] = {"heads": HEADS_COMMANDS, "clip": CLIP_COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--quick" in argv and "jax" not in sys.modules:
        from flowsim.base import processes

        processes.compile_quickly()
    try:
        argv, homes = split_imports(argv)
        with current_folder_first() if homes else contextlib.nullcontext():
            for home in homes:
                imported(home)
            code = _run(argv)
        sys.stdout.flush()
        return code
    except FlowsimError as error:
        say(str(error))
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # The reader closed the pipe (`| head`). Python must not fail when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        stored = argv[:1] == ["sweep"] and any(a.partition("=")[0] == "--to" for a in argv)
        again = "resume" if stored or argv[:1] in (["reproduce"], ["heads"], ["clip"]) else "start again"
        say(f"Interrupted; run the same command to {again}.")
        return EXIT_INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] == "--version":
        import importlib.metadata

        try:
            version = importlib.metadata.version("flowsim")
        except importlib.metadata.PackageNotFoundError:
            version = "unknown (not installed)"
        print(f"flowsim {version}")
        return 0
    prog, commands = "flowsim", COMMANDS
    if len(argv) > 1 and argv[0] in GROUPS:
        prog, commands, argv = f"flowsim {argv[0]}", GROUPS[argv[0]], argv[1:]
    try:
        command = parse(argv, prog, commands)
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)
    try:
        return command.run()
    except FlowsimError as error:
        options = options_of(argv[0], prog, commands)
        raise FlowsimError(in_options(str(error), options, given_options(command), _settings(command))) from None


def _settings(command: Command) -> Collection[str]:
    """Names that `--set NAME=VALUE` of a training command takes; none for other commands."""
    if isinstance(command, HeadsOptions):
        from flowsim.heads.settings import Training
    elif isinstance(command, TrainingOptions):
        from flowsim.clip.settings import Training
    else:
        return ()
    return [field.name for field in dataclasses.fields(Training)]
