"""Views of an `Explorer`: ipywidgets in a notebook, matplotlib's widgets in a window. No logic of their own."""

import functools
import io
from typing import Any

import numpy as np

from flowsim.explore import CONTROLS, Control, Explorer, presets

_DESCRIPTION = {"description_width": "150px"}


def notebook(explorer: Explorer) -> Any:
    """Show the explorer as ipywidgets; returns the widget."""
    import ipywidgets as w
    from IPython.display import display

    picture = w.Image(format="png")
    message = w.HTML()
    code = w.Textarea(layout=w.Layout(width="100%", height="130px"), disabled=True)
    frame = w.IntSlider(max=len(explorer.result.snapshot_time) - 1, description="time", readout=False)
    play = w.Play(max=frame.max, interval=120)
    w.jslink((play, "value"), (frame, "value"))
    path = w.Text(value="explorer.png", description="file")
    save = w.Button(description="save", tooltip="picture (.png, .pdf), result (.nc) or calls (.py)")
    preset = w.Dropdown(options=["", *presets()], description="preset", style=_DESCRIPTION)
    preset.layout.width = "410px"
    widgets = {control.name: _slider(w, control, getattr(explorer.choice, control.name)) for control in CONTROLS}
    quiet = False

    def paint() -> None:
        buffer = io.BytesIO()
        explorer.figure.savefig(buffer, format="png")
        picture.value = buffer.getvalue()

    def refresh() -> None:
        nonlocal quiet
        quiet = True
        for name, widget in widgets.items():
            widget.value = getattr(explorer.choice, name)
        frame.value = explorer.frame
        quiet = False
        message.value = f"<span style='color:firebrick'>{explorer.message}</span>"
        code.value = explorer.code()
        paint()

    def moved(control: Control, change: Any) -> None:
        if not quiet and not control.same(getattr(explorer.choice, control.name), change["new"]):
            explorer.set(**{control.name: change["new"]})
            refresh()

    def scrubbed(change: Any) -> None:
        if not quiet:
            explorer.scrub(change["new"])
            paint()

    def chosen(change: Any) -> None:
        if change["new"]:
            explorer.preset(change["new"])
            refresh()

    def saved(_: Any) -> None:
        from flowsim.errors import FlowsimError

        try:
            message.value = f"Saved {explorer.save(path.value)}."
        except FlowsimError as error:
            message.value = f"<span style='color:firebrick'>{error}</span>"

    for control in CONTROLS:
        widgets[control.name].observe(functools.partial(moved, control), "value")
    frame.observe(scrubbed, "value")
    preset.observe(chosen, "value")
    save.on_click(saved)
    controls = w.VBox([preset, *widgets.values()], layout=w.Layout(width="430px"))
    right = w.VBox([picture, w.HBox([play, frame]), message, w.HBox([path, save]), code])
    refresh()
    box = w.HBox([controls, right])
    display(box)
    return box


def _slider(w: Any, control: Control, value: Any) -> Any:
    layout = w.Layout(width="410px")
    common = {"description": control.label, "style": _DESCRIPTION, "value": value, "layout": layout}
    if control.kind == "choice":
        return w.Dropdown(options=list(control.options), **common)
    if control.kind == "whole":
        return w.IntSlider(min=int(control.low), max=int(control.high), continuous_update=False, **common)
    if control.kind == "log":
        low, high = np.log10([control.low, control.high])
        return w.FloatLogSlider(min=low, max=high, step=control.step, readout_format=".3g", **common)
    return w.FloatSlider(min=control.low, max=control.high, step=control.step, readout_format=".3g", **common)


def window(explorer: Explorer) -> Any:
    """Show the explorer in a window of matplotlib; returns its figure, which holds the widgets."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.widgets import Button, RadioButtons, Slider

    figure = plt.figure("flowsim", figsize=(14, 7))
    stage = figure.add_axes((0.31, 0.08, 0.69, 0.92))
    stage.set_axis_off()
    canvas = FigureCanvasAgg(explorer.figure)
    canvas.draw()
    shown = stage.imshow(np.asarray(canvas.buffer_rgba()))
    kept: dict[str, Any] = {}
    sliders = [c for c in CONTROLS if c.kind != "choice"]
    choices = [c for c in CONTROLS if c.kind == "choice"]

    def paint() -> None:
        canvas.draw()
        shown.set_data(np.asarray(canvas.buffer_rgba()))
        figure.canvas.draw_idle()

    def moved(control: Control, value: Any) -> None:
        if control.kind == "log":
            value = 10.0**value
        explorer.set(**{control.name: int(value) if control.kind == "whole" else value})
        kept["time"].eventson = False
        kept["time"].set_val(explorer.frame)
        kept["time"].eventson = True
        paint()

    def scrubbed(value: float) -> None:
        explorer.scrub(int(value))
        paint()

    for i, control in enumerate(sliders):
        ax = figure.add_axes((0.115, 0.96 - 0.036 * i, 0.14, 0.025))
        value = getattr(explorer.choice, control.name)
        low, high = control.low, control.high
        if control.kind == "log":
            low, high, value = np.log10([low, high, value])
        label = f"log {control.label}" if control.kind == "log" else control.label
        slider = Slider(ax, label, low, high, valinit=value, valstep=1 if control.kind == "whole" else None)
        slider.label.set_fontsize(8)
        slider.valtext.set_fontsize(8)
        slider.on_changed(functools.partial(moved, control))
        kept[control.name] = slider
    bottom = 0.96 - 0.036 * len(sliders)
    for i, control in enumerate(choices):
        ax = figure.add_axes((0.01 + 0.1 * i, 0.12, 0.095, bottom - 0.16))
        ax.set_title(control.label, fontsize=8)
        active = control.options.index(getattr(explorer.choice, control.name))
        radio = RadioButtons(ax, control.options, active=active)
        for text in radio.labels:
            text.set_fontsize(7)
        radio.on_clicked(functools.partial(moved, control))
        kept[control.name] = radio
    last = len(explorer.result.snapshot_time) - 1
    kept["time"] = Slider(figure.add_axes((0.38, 0.03, 0.45, 0.03)), "time", 0, last, valinit=explorer.frame, valstep=1)
    kept["time"].on_changed(scrubbed)
    kept["save"] = Button(figure.add_axes((0.9, 0.02, 0.08, 0.045)), "save")
    kept["save"].on_clicked(lambda _: explorer.save("explorer.png"))
    kept["code"] = Button(figure.add_axes((0.02, 0.02, 0.12, 0.045)), "print as code")
    kept["code"].on_clicked(lambda _: print(explorer.code()))
    figure.flowsim_widgets = kept  # pyright: ignore  (widgets without a reference stop answering)
    figure.show()
    return figure
