"""Compiling is announced to people who wait, and to nobody else."""

import io

import jax
import jax.numpy as jnp
import pytest

from flowsim.base import notice as _notice


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compile_something(size: int) -> None:
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones(size)).block_until_ready()


def test_who_watches_hears_begin_and_end_in_turn() -> None:
    told: list[bool] = []
    with _notice.watch(told.append):
        assert told == []
        compile_something(17)
    assert told
    assert told == [i % 2 == 0 for i in range(len(told))]
    assert len(told) % 2 == 0
    before = len(told)
    compile_something(18)
    assert len(told) == before


def test_the_words_appear_in_a_terminal_and_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_notice, "_PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with _notice.compiling():
        compile_something(19)
    text = terminal.getvalue()
    assert text.startswith("compiling ...\r")
    assert text.endswith(" " * len("compiling ...") + "\r")


@pytest.mark.parametrize(
    ("stream", "patience", "watched"),
    [(io.StringIO(), 0.0, False), (Terminal(), 60.0, False), (Terminal(), 0.0, True)],
    ids=["no terminal", "soon done", "shown otherwise"],
)
def test_else_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, patience: float, watched: bool
) -> None:
    monkeypatch.setattr(_notice, "_PATIENCE", patience)
    monkeypatch.setattr("sys.stderr", stream)
    if watched:
        with _notice.watch(lambda compiles: None), _notice.compiling():
            compile_something(20)
    else:
        with _notice.compiling():
            compile_something(21 + (patience > 0))
    assert stream.getvalue() == ""


def test_what_is_compiled_already_is_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = jax.jit(lambda x: 2 * x)
    doubled(jnp.ones(3))
    monkeypatch.setattr(_notice, "_PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with _notice.compiling():
        doubled(jnp.ones(3)).block_until_ready()
    assert terminal.getvalue() == ""
