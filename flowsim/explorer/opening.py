"""`explore`: find the view that fits the session, and open the explorer in it."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.explorer.choice import Choice
from flowsim.explorer.explorer import Explorer


def explore(view: bool = True, **choice: Any) -> Explorer:
    """Open the explorer with some controls set; see the module. `view=False` opens no window.

    Returns the `Explorer`. Raises `FlowsimError` for unknown controls or values, and, with `view`, where there is
    neither a notebook nor a display.
    """
    first = Choice().replace(**choice)
    if not view:
        return Explorer(first)
    waits, show = _view()
    with waits():
        explorer = Explorer(first)
    show(explorer)
    return explorer


def _view() -> tuple[Callable[[], contextlib.AbstractContextManager[None]], Callable[[Explorer], Any]]:
    """What says that the first run compiles, and what shows the explorer."""
    shell = sys.modules.get("IPython")
    kernel = None if shell is None else getattr(shell.get_ipython(), "kernel", None)
    if kernel is not None:
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            raise FlowsimError("Sliders in a notebook need ipywidgets. Use pip install 'flowsim[explore]'.") from None
        from flowsim.explorer.views import notebook, notebook_waits

        return notebook_waits, notebook
    import matplotlib

    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "template", "cairo") or not _display():
        raise FlowsimError(
            "There is no display to explore on. Use a notebook, a terminal with a display and matplotlib's GUI "
            "(%matplotlib), or fs.explore(view=False), which can be driven from code."
        )
    from flowsim.explorer.views import window, window_waits

    return window_waits, window


def _display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
