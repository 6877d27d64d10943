"""Views of an `Explorer`, without logic: ipywidgets in a notebook, matplotlib's widgets in a window."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.explorer.choice import CONTROLS, Control, presets
from flowsim.explorer.explorer import Explorer

_DESCRIPTION = {"description_width": "150px"}
#: Entry of the preset box when no preset matches the controls.
_OWN = "(own settings)"


@contextlib.contextmanager
def notebook_waits() -> Iterator[None]:
    """Announce in the notebook that the first run compiles."""
    from IPython.display import HTML, display

    place = display(HTML("<i>compiling ...</i>"), display_id=True)
    yield
    if place is not None:
        place.update(HTML(""))


def notebook(explorer: Explorer) -> Any:
    """Show the explorer as ipywidgets, and return the widget."""
    import ipywidgets as w
    from IPython.display import display

    # The picture is pale while its settings are not those of the controls.
    style = w.HTML("<style>.flowsim-waits {opacity: 0.3}</style>")
    picture = w.Image(format="png")
    stage = w.Box([picture])
    message = w.HTML()
    code = w.Textarea(layout=w.Layout(width="98%", height="130px"), disabled=True)
    frame = w.IntSlider(max=len(explorer.result.snapshot_time) - 1, description="time", readout=False)
    play = w.Play(max=frame.max, interval=120)
    w.jslink((play, "value"), (frame, "value"))
    path = w.Text(value="explorer.png", description="file")
    save = w.Button(description="save", tooltip="picture (.png, .pdf), result (.nc) or calls (.py)")
    preset = w.Dropdown(options=[_OWN, *presets()], description="preset", style=_DESCRIPTION)
    preset.layout.width = "410px"
    widgets = {control.name: _slider(w, control, getattr(explorer.choice, control.name)) for control in CONTROLS}
    quiet = False

    def paint() -> None:
        buffer = io.BytesIO()
        explorer.figure.savefig(buffer, format="png")
        picture.value = buffer.getvalue()

    def told(text: str) -> None:
        nonlocal quiet
        if text:
            stage.add_class("flowsim-waits")
            message.value = f"<i>{text}</i>"
            return
        quiet = True
        for control in CONTROLS:
            _show_value(control, widgets[control.name], getattr(explorer.choice, control.name))
            widgets[control.name].disabled = control.name in explorer.choice.unused
        preset.value = explorer.preset_name or _OWN
        frame.value = explorer.frame
        quiet = False
        message.value = f"<span style='color:firebrick'>{explorer.message}</span>"
        code.value = explorer.code()
        paint()
        stage.remove_class("flowsim-waits")

    def moved(control: Control, change: Any) -> None:
        if not quiet and change["new"] != getattr(explorer.choice, control.name):
            explorer.set(**{control.name: change["new"]})

    def scrubbed(change: Any) -> None:
        if not quiet:
            explorer.scrub(change["new"])

    def chosen(change: Any) -> None:
        if not quiet and change["new"] != _OWN:
            explorer.preset(change["new"])

    def saved(_: Any) -> None:
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
    right = w.VBox([stage, w.HBox([play, frame]), message, w.HBox([path, save]), code, style])
    told("")
    explorer.watchers.append(told)
    box = w.HBox([controls, right])
    display(box)
    return box


def _slider(w: Any, control: Control, value: Any) -> Any:
    common = {"description": control.label, "style": _DESCRIPTION, "value": value, "layout": w.Layout(width="410px")}
    if control.kind == "choice":
        return w.Dropdown(options=list(control.options), **common)
    if control.kind == "whole":
        return w.IntSlider(min=int(control.low), max=int(control.high), continuous_update=False, **common)
    # Not a FloatSlider: browsers round its value to a step and show a number other than the one that is run.
    return w.SelectionSlider(options=_options(control, value), **common)


def _options(control: Control, value: float) -> list[tuple[str, float]]:
    return [(_text(x), x) for x in control.values(value)]


def _text(value: float) -> str:
    return f"{value:.12g}"


def _show_value(control: Control, widget: Any, value: Any) -> None:
    """Set an ipywidget to a value, which need not be one of the slider's round numbers."""
    if control.kind in ("number", "log"):
        options = _options(control, value)
        if list(widget.options) != options:
            # Together with the value, otherwise the first option would be selected for a moment.
            with widget.hold_sync():
                widget.options = options
                widget.value = value
            return
    widget.value = value


@contextlib.contextmanager
def window_waits() -> Iterator[None]:
    """Announce in the terminal that the first run compiles."""
    print("compiling ...", flush=True)
    yield


def window(explorer: Explorer) -> Any:
    """Show the explorer in a matplotlib window, and return its figure, which holds the widgets."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.widgets import Slider

    figure = plt.figure("flowsim", figsize=(14, 7))
    stage = figure.add_axes((0.31, 0.08, 0.69, 0.92))
    stage.set_axis_off()
    waits = stage.text(0.5, 0.5, "", transform=stage.transAxes, ha="center", fontsize=16)
    canvas = FigureCanvasAgg(explorer.figure)
    canvas.draw()
    shown = stage.imshow(np.asarray(canvas.buffer_rgba()))
    kept: dict[str, Any] = {}
    values: dict[str, list[Any]] = {"preset": [_OWN, *presets()]}
    sliders = [c for c in CONTROLS if c.kind != "choice"]

    def put(name: str, value: Any) -> None:
        """Set a slider to one of its values; the slider itself holds the index."""
        slider = kept[name]
        slider.valmax = len(values[name]) - 1
        slider.ax.set_xlim(0, slider.valmax)
        _silently(slider, slider.set_val, values[name].index(value))
        slider.valtext.set_text(value if isinstance(value, str) else _text(value))

    def told(text: str) -> None:
        waits.set_text(text)
        shown.set_alpha(0.3 if text else 1.0)
        if text:
            figure.canvas.draw()
            figure.canvas.flush_events()
            return
        for control in CONTROLS:
            value, used = getattr(explorer.choice, control.name), control.name not in explorer.choice.unused
            if control.kind == "choice":
                _silently(kept[control.name], kept[control.name].set_active, control.options.index(value))
                continue
            values[control.name] = control.values(value)
            put(control.name, value)
            kept[control.name].set_active(used)
            for artist in (kept[control.name].label, kept[control.name].valtext, kept[control.name].poly):
                artist.set_alpha(1.0 if used else 0.25)
        put("preset", explorer.preset_name or _OWN)
        _silently(kept["time"], kept["time"].set_val, explorer.frame)
        canvas.draw()
        shown.set_data(np.asarray(canvas.buffer_rgba()))
        figure.canvas.draw_idle()

    def moved(control: Control, value: Any) -> None:
        explorer.set(**{control.name: value if control.kind == "choice" else values[control.name][int(value)]})

    def chosen(index: float) -> None:
        if index:
            explorer.preset(values["preset"][int(index)])

    def slider(name: str, place: tuple[float, ...], text: str, index: int) -> None:
        # The slider holds an index, so that no value lies between two of its steps.
        last = len(values[name]) - 1
        made = Slider(figure.add_axes(place), text, 0, last, valinit=index, valstep=1)  # pyright: ignore
        made.label.set(fontsize=8, x=-0.05)
        made.valtext.set_fontsize(8)
        kept[name] = made

    height = 0.036
    slider("preset", (0.125, 0.96, 0.13, 0.025), "preset", 0)
    kept["preset"].on_changed(chosen)
    for i, control in enumerate(sliders, start=1):
        value = getattr(explorer.choice, control.name)
        values[control.name] = control.values(value)
        place = (0.125, 0.96 - height * i, 0.13, 0.025)
        slider(control.name, place, control.label, values[control.name].index(value))
        kept[control.name].on_changed(functools.partial(moved, control))
    _add_choices(figure, explorer, kept, 0.96 - height * (len(sliders) + 1), moved)
    _add_time_and_buttons(figure, explorer, kept)
    told("")
    explorer.watchers.append(told)
    figure.flowsim_widgets = kept  # pyright: ignore  (widgets without a reference stop responding)
    figure.show()
    return figure


def _add_choices(
    figure: Any, explorer: Explorer, kept: dict[str, Any], bottom: float, moved: Callable[[Control, Any], None]
) -> None:
    """Add radio buttons for every control of kind "choice", below the sliders."""
    from matplotlib.widgets import RadioButtons

    for i, control in enumerate(c for c in CONTROLS if c.kind == "choice"):
        ax = figure.add_axes((0.01 + 0.1 * i, 0.12, 0.095, bottom - 0.16))
        ax.set_title(control.label, fontsize=8)
        active = control.options.index(getattr(explorer.choice, control.name))
        radio = RadioButtons(ax, control.options, active=active)
        for text in radio.labels:
            text.set_fontsize(7)
        radio.on_clicked(functools.partial(moved, control))
        kept[control.name] = radio


def _add_time_and_buttons(figure: Any, explorer: Explorer, kept: dict[str, Any]) -> None:
    """Add the slider of the time shown, and the buttons."""
    from matplotlib.widgets import Button, Slider

    last = len(explorer.result.snapshot_time) - 1
    kept["time"] = Slider(figure.add_axes((0.38, 0.03, 0.45, 0.03)), "time", 0, last, valinit=explorer.frame, valstep=1)
    kept["time"].valtext.set_visible(False)
    kept["time"].on_changed(lambda frame: explorer.scrub(int(frame)))
    kept["save"] = Button(figure.add_axes((0.9, 0.02, 0.08, 0.045)), "save")
    kept["save"].on_clicked(lambda _: explorer.save("explorer.png"))
    kept["code"] = Button(figure.add_axes((0.02, 0.02, 0.12, 0.045)), "print as code")
    kept["code"].on_clicked(lambda _: print(explorer.code()))


def _silently(widget: Any, move: Callable[[Any], None], value: Any) -> None:
    """Move a matplotlib widget without calling its callbacks."""
    widget.eventson = False
    move(value)
    widget.eventson = True
