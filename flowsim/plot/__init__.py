"""Figures of results. Most functions take a result or arrays, draw on `ax` or a new figure, and return the axes.

    fs.plot.overview(result)
    fs.plot.gap(result, ax=axes[0])

No function shows a figure or changes matplotlib's settings. The context manager `paper_style()` sets the style of the
figures that `flowsim reproduce` writes. The colours are those of Okabe and Ito, which remain distinct under colour
blindness.
"""

from flowsim.plot.embeddings import clouds, similarity, sphere
from flowsim.plot.film import animate, film_kind
from flowsim.plot.overview import overview
from flowsim.plot.phase import phase_diagram
from flowsim.plot.series import (
    exponent,
    gap,
    gap_against_retrieval,
    series,
    shade_intervals,
    shade_matched,
    temperature,
)
from flowsim.plot.style import (
    COLOURS,
    COLUMN,
    CYCLE,
    IMAGE_COLOUR,
    MATCHED_COLOUR,
    PAGE,
    TEXT_COLOUR,
    TIME_LABEL,
    label,
    paper_style,
    save,
    time_text,
)

__all__ = [
    "COLOURS",
    "COLUMN",
    "CYCLE",
    "IMAGE_COLOUR",
    "MATCHED_COLOUR",
    "PAGE",
    "TEXT_COLOUR",
    "TIME_LABEL",
    "animate",
    "clouds",
    "exponent",
    "film_kind",
    "gap",
    "gap_against_retrieval",
    "label",
    "overview",
    "paper_style",
    "phase_diagram",
    "save",
    "series",
    "shade_intervals",
    "shade_matched",
    "similarity",
    "sphere",
    "temperature",
    "time_text",
]
