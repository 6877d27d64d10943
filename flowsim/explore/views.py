"""Views of an `Explorer`: ipywidgets in a notebook, matplotlib's widgets in a window. No logic of their own."""

import functools
import io
from collections.abc import Callable
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

    def shown_value(control: Control) -> Any:
        value = getattr(explorer.choice, control.name)
        if control.kind == "choice":
            return control.options.index(value)
        return np.log10(value) if control.kind == "log" else value

    def show() -> None:
        """Picture and widgets as the explorer has them."""
        for control in CONTROLS:
            widget = kept[control.name]
            move = widget.set_active if control.kind == "choice" else widget.set_val
            _silently(widget, move, shown_value(control))
            if control.kind == "log":
                widget.valtext.set_text(f"{getattr(explorer.choice, control.name):.3g}")
        _silently(kept["time"], kept["time"].set_val, explorer.frame)
        paint()

    def paint() -> None:
        canvas.draw()
        shown.set_data(np.asarray(canvas.buffer_rgba()))
        figure.canvas.draw_idle()

    def moved(control: Control, value: Any) -> None:
        if control.kind == "log":
            value = 10.0**value
        explorer.set(**{control.name: int(value) if control.kind == "whole" else value})
        show()

    def chosen(index: float) -> None:
        kept["preset"].valtext.set_text(names[int(index)])
        explorer.preset(names[int(index)])
        show()

    def scrubbed(value: float) -> None:
        explorer.scrub(int(value))
        paint()

    def slider(place: tuple[float, ...], text: str, low: float, high: float, value: float, step: float | None) -> Any:
        made = Slider(figure.add_axes(place), text, low, high, valinit=value, valstep=step)  # pyright: ignore
        made.label.set(fontsize=8, x=-0.05)
        made.valtext.set_fontsize(8)
        return made

    names = list(presets())
    height = 0.036
    kept["preset"] = slider((0.125, 0.96, 0.13, 0.025), "preset", 0, len(names) - 1, 0, 1)
    kept["preset"].valtext.set_text(names[0])
    kept["preset"].on_changed(chosen)
    for i, control in enumerate(sliders, start=1):
        low, high = np.log10([control.low, control.high]) if control.kind == "log" else (control.low, control.high)
        step = 1 if control.kind == "whole" else None
        place = (0.125, 0.96 - height * i, 0.13, 0.025)
        kept[control.name] = slider(place, control.label, low, high, shown_value(control), step)
        kept[control.name].on_changed(functools.partial(moved, control))
    bottom = 0.96 - height * (len(sliders) + 1)
    for i, control in enumerate(choices):
        ax = figure.add_axes((0.01 + 0.1 * i, 0.12, 0.095, bottom - 0.16))
        ax.set_title(control.label, fontsize=8)
        radio = RadioButtons(ax, control.options, active=shown_value(control))
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
    show()
    figure.flowsim_widgets = kept  # pyright: ignore  (widgets without a reference stop answering)
    figure.show()
    return figure


def _silently(widget: Any, move: Callable[[Any], None], value: Any) -> None:
    """Move a widget of matplotlib without calling what listens to it."""
    widget.eventson = False
    move(value)
    widget.eventson = True
