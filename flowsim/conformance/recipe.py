"""Checks of recipes."""

import dataclasses

import numpy as np

from flowsim.base.modules import parts_of
from flowsim.conformance.compare import CLOSE, difference, finite, same
from flowsim.conformance.suite import Suite, fail, require
from flowsim.model.geometry import AbstractGeometry
from flowsim.model.initial import AbstractRecipe, Start

SUITE = Suite("recipe", AbstractRecipe, lambda recipe: recipe.draw(0), "`draw`")


@SUITE.check("start")
def start(recipe: AbstractRecipe) -> str:
    drawn = recipe.draw(0)
    require(isinstance(drawn, Start), f"`draw` must return a fs.initial.Start, but returns {type(drawn).__name__}.")
    held = {f.name: getattr(drawn, f.name) for f in dataclasses.fields(drawn)}
    held = {name: array for name, array in held.items() if array is not None}
    for name, array in held.items():
        kind = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
        require(
            isinstance(array, (np.ndarray, np.generic)) and array.dtype == np.float64,
            f"`draw` must give NumPy arrays of float64, but `{name}` is {kind}. Draw with np.random.default_rng(seed).",
        )
        require(finite(array), f"`draw` must give finite numbers, but `{name}` has NaN or infinity.")
    return f"`draw` gives {', '.join(f'{name} {np.shape(array)}' for name, array in held.items())}."


@SUITE.check("seeds", "start")
def seeds(recipe: AbstractRecipe) -> str:
    if same(recipe.draw(0), recipe.draw(1)):
        return "`draw` gives the same start for every seed: the recipe is deterministic."
    return "`draw` gives different starts for different seeds."


@SUITE.check("unit rows", "start")
def unit_rows(recipe: AbstractRecipe) -> str:
    drawn = recipe.draw(0)
    if drawn.image is None:
        return "`draw` gives no rows, but the data from which they follow."
    require(
        np.ndim(drawn.image) == 2 and np.shape(drawn.image) == np.shape(drawn.text),
        f"`draw` must give image and text rows of one shape (n, d), but gives {np.shape(drawn.image)} and "
        f"{np.shape(drawn.text)}.",
    )
    apart = difference([np.linalg.norm(x, axis=1) for x in (drawn.image, drawn.text)], [np.ones(drawn.pairs)] * 2)
    require(apart < CLOSE, f"`draw` must give rows of length 1, but one is off by {apart:.2g}. Divide by the lengths.")
    return "`draw` gives rows of length 1."


@SUITE.check("places", "start")
def places(recipe: AbstractRecipe) -> str:
    drawn, said = recipe.draw(0), {}
    for name, cls in parts_of(AbstractGeometry).items():
        try:
            cls().place(drawn)
        except Exception as error:  # a user's geometry may raise anything
            said[name] = error
    taken = [name for name in parts_of(AbstractGeometry) if name not in said]
    if not taken:
        fail(f"`draw` must give a start that some geometry takes, but none does: {next(iter(said.values()))}")
    return f"`draw` gives a start for {', '.join(taken)}."
