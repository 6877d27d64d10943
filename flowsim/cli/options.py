"""Types of options: how tyro reads a number, a text or a choice, and refuses a wrong one."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from tyro import conf
from tyro.constructors import PrimitiveConstructorSpec

from flowsim.errors import unknown_name


class UsageError(Exception):
    """A FlowsimError that tyro must not catch: it catches every ValueError."""


def _value(
    option: str, convert: Callable[[str], Any], metavar: str, wanted: str, example: str
) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads one value; a wrong one raises flowsim's message."""

    def read(tokens: list[str]) -> Any:
        try:
            return convert(tokens[0])
        except ValueError:
            raise UsageError(
                f"Option `{option}` must be {wanted}, but is {tokens[0]!r}. Use e.g. {option} {example}."
            ) from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [f"{value:g}" if isinstance(value, float) else str(value)],
    )


def number(option: str, example: str) -> PrimitiveConstructorSpec[Any]:
    """A float."""
    return _value(option, float, "NUMBER", "a number", example)


def whole(option: str, example: str) -> PrimitiveConstructorSpec[Any]:
    """An int."""
    return _value(option, int, "N", "a whole number", example)


def text(option: str, metavar: str) -> PrimitiveConstructorSpec[Any]:
    """A str."""
    return _value(option, str, metavar, "text", metavar)


def choice(option: str, known: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    """One of `known`; other values are refused, with the nearest ones in the message."""

    def convert(token: str) -> str:
        if token not in known:
            raise UsageError(str(unknown_name(option.removeprefix("--"), token, known)))
        return token

    return _value(option, convert, "|".join(known), "one of these", known[0])


def hint(remark: str = "") -> Any:
    """The remark in parentheses after an option's help; none by default."""
    return conf.arg(help_behavior_hint=remark)


def flag(field: str) -> str:
    """The option of a field: "--text-factors" of "text_factors"."""
    return "--" + field.replace("_", "-")


Flag = Annotated[bool, hint()]
#: Positional arguments.
Names = Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="[NAME ...]", help_behavior_hint="")]
File = Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="FILE", help_behavior_hint="")]
Files = Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="RUN.nc|LOG ...", help_behavior_hint="")]
#: One of the runs of a file.
RunName = Annotated[str | None, text("--run", "NAME"), conf.arg(name="run", help_behavior_hint="")]


def names_in(text: str | None) -> list[str] | None:
    """The names in a list with commas; None for None."""
    return None if text is None else [name.strip() for name in text.split(",")]
