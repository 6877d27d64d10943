"""Explore a flow by moving sliders: `fs.explore()`.

In a notebook the controls are ipywidgets (extra `explore`), in plain IPython with a window they are matplotlib's;
without a display there is one sentence. Both views show one `Explorer`, which can be driven from code as well:

    explorer = fs.explore(view=False)
    explorer.set(height=0.5, policy="fixed", temperature=0.2)
    explorer.result, explorer.code(), explorer.save("picture.png")

Moving a slider changes a number, which compiles nothing; another number of pairs or dimension, geometry, policy or
swap is another structure and compiles for some seconds the first time.
"""

from flowsim.explorer.choice import CONTROLS, POINTS, Choice, Control, presets
from flowsim.explorer.explorer import Explorer
from flowsim.explorer.opening import explore

__all__ = ["CONTROLS", "POINTS", "Choice", "Control", "Explorer", "explore", "presets"]
