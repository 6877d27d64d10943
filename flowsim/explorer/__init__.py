"""Explore a flow by moving sliders: `fs.explore()`.

In a notebook the controls are ipywidgets (extra `explore`), elsewhere matplotlib's widgets in a window. Both views show
an `Explorer`, which can also be driven from code:

    explorer = fs.explore(view=False)
    explorer.set(height=0.5, policy="fixed", temperature=0.2)
    explorer.result, explorer.code(), explorer.save("picture.png")

Most sliders change a number, which compiles nothing. Another number of pairs, dimension, geometry, policy or swap, or
switching label noise on, is compiled for a few seconds the first time.
"""

from flowsim.explorer.choice import CONTROLS, POINTS, Choice, Control, presets
from flowsim.explorer.explorer import Explorer
from flowsim.explorer.opening import explore

__all__ = ["CONTROLS", "POINTS", "Choice", "Control", "Explorer", "explore", "presets"]
