"""`explore`: open the explorer in the view that fits the session."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.explorer.choice import Choice
from flowsim.explorer.explorer import Explorer


def explore(view: bool = True, **choice: Any) -> Explorer:
    """Explore a flow by moving sliders, in a notebook or a window.

    Args:
        view: Whether to show the explorer. If False, it is only driven from code.
        **choice: Initial values of controls, such as `height=0.5`; see `flowsim.explorer.Choice`. Default: Figure 2 of
            Yaras et al. 2025.

    Returns:
        The explorer, with the methods `set`, `preset`, `scrub`, `code` and `save`.

    Raises:
        FlowsimError: If a control or value is invalid, or if `view` is True and there is neither a notebook with
            ipywidgets nor a display.

    Examples:
        >>> import flowsim as fs
        >>> explorer = fs.explore(view=False, height=0.5)
        >>> explorer.result.status.ok
        True
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
    """The context that announces compiling, and the function that shows the explorer."""
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
            "There is no display for the explorer. Use a notebook, a display with a GUI backend of matplotlib "
            "(%matplotlib), or fs.explore(view=False), which is driven from code."
        )
    from flowsim.explorer.views import window, window_waits

    return window_waits, window


def _display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
