"""Parts that are wrong in one way each, to show that `fs.check` finds it.

A fixture imports this: classes are known by name from their definition on, and other tests list all names.
"""

import itertools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import flowsim as fs
from flowsim.model.extend import number
from flowsim.model.geometry import normalise
from flowsim.model.geometry.rows import Rows
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.kernels import AbstractKernel
from flowsim.model.losses import AbstractLoss, AbstractRowLoss
from flowsim.model.pairing import AbstractPairing, Targets
from flowsim.model.rules import AbstractRule
from flowsim.model.swaps import AbstractSwap
from flowsim.model.temperature import AbstractParametrization, AbstractTemperature, Exp, Identity, Learnable
from flowsim.observables import Observable

_count = itertools.count()


# --- temperature policies -------------------------------------------------------------------------------


class NegativeTemperature(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 5.0 - 10.0 * progress


class LeavesAfterTheEnd(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 1.0 / (0.1 - 0.08 * progress)


class OneNumberForMany(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return fs.extend.namespace(progress).stack([progress + 1.0, progress + 2.0])


class DoubleConstant(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return np.float64(10.0) + progress


class StaticNumber(AbstractTemperature):
    beta: float = 10.0

    def inverse_temperature(self, progress, raw=None):
        return self.beta + progress


class NumpyInside(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return np.exp(progress)


class JaxInside(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return jnp.exp(progress)


class Impure(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 10.0 + progress + 1e-13 * next(_count)


class SaysAutonomous(AbstractTemperature):
    autonomous: ClassVar[bool] = True

    def inverse_temperature(self, progress, raw=None):
        return 10.0 + progress


class NoRepr(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 10.0 + progress

    def __repr__(self):
        raise RuntimeError("nothing to show")


class Halved(AbstractTemperature):
    beta: Any = eqx.field(converter=lambda x: number(x) / 2, default=20.0)

    def inverse_temperature(self, progress, raw=None):
        return self.beta + progress


class OddBreakpoints(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 10.0 + progress

    def breakpoints(self):
        return (3e4,)


class Broken(AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 1.0 / self.missing  # pyright: ignore[reportAttributeAccessIssue]


class NoRaw(Learnable):
    def initial_raw(self):
        return None


class WrongPolicyDerivative(Learnable):
    def derivative(self, progress, raw):
        return 2 * super().derivative(progress, raw)


class WrongRawOf(Learnable):
    def raw_of(self, inverse_temperature):
        return inverse_temperature


class UpsideDownBounds(Learnable):
    def bounds(self):
        return 5.0, 1.0


class Outside(Learnable):
    def exits(self, raw):
        return {"temperature_infinite": -raw}


class AbstractSquare(AbstractTemperature):
    """β = ν²."""

    learnable: ClassVar[bool] = True
    autonomous: ClassVar[bool] = True

    def inverse_temperature(self, progress, raw=None):
        return raw**2

    def initial_raw(self):
        return 3.0


class DerivativeMissing(AbstractSquare):
    pass


class NegativeRate(AbstractSquare):
    lr_ratio = -1.0

    def derivative(self, progress, raw):
        return 2 * raw


class SaysExp(AbstractSquare):
    parametrization = Exp()

    def derivative(self, progress, raw):
        return 2 * raw


# --- parametrizations -----------------------------------------------------------------------------------


class WrongDerivative(Exp):
    def derivative(self, raw):
        return 1.01 * super().derivative(raw)


class NoInverse(Exp):
    def raw(self, inverse_temperature):
        return 1.001 * super().raw(inverse_temperature)


class Falling(AbstractParametrization):
    def inverse_temperature(self, raw):
        return -raw

    def raw(self, inverse_temperature):
        return -inverse_temperature

    def derivative(self, raw):
        return -fs.extend.namespace(raw).ones_like(raw)


class JaxParametrization(AbstractParametrization):
    def inverse_temperature(self, raw):
        return jnp.exp(raw)

    def raw(self, inverse_temperature):
        return jnp.log(inverse_temperature)

    def derivative(self, raw):
        return jnp.exp(raw)


class DoubleParametrization(Identity):
    def derivative(self, raw):
        return 0 * raw + np.float64(1.0)


class SaysSoftplus(Exp):
    potential: ClassVar[str | None] = "softplus"


class UnknownPotential(Exp):
    potential: ClassVar[str | None] = "logistic"


# --- losses ---------------------------------------------------------------------------------------------


class WrongGradient(fs.Sigmoid):
    def gradient(self, logits, targets):
        return 2 * super().gradient(logits, targets)


class GradientOfMatched(fs.Sigmoid):
    """Right for matched pairs alone."""

    def gradient(self, logits, targets):
        return super().gradient(logits, Targets())


class ValuePerRow(fs.Sigmoid):
    def value(self, logits, targets):
        return jnp.diagonal(logits)


class DoubleLoss(fs.Sigmoid):
    def value(self, logits, targets):
        return np.float64(1.0) * super().value(logits, targets)


class OnlyWritten(fs.Sigmoid):
    """Takes described targets for matched ones."""

    def value(self, logits, targets):
        return super().value(logits, Targets(targets.rows, targets.columns))

    def gradient(self, logits, targets):
        return super().gradient(logits, Targets(targets.rows, targets.columns))


class SaysSoftmax(fs.Sigmoid):
    softmax: ClassVar[bool] = True


class SaysTiles(fs.Sigmoid):
    tile_weights: ClassVar[tuple[float, float] | None] = (1.0, 0.0)


class RateWithoutBias(AbstractLoss):
    bias: ClassVar[None] = None
    bias_rate: ClassVar[float] = 1.0
    relative_bias: ClassVar[bool] = False

    def value(self, logits, targets):
        return jnp.sum(logits**2)

    def gradient(self, logits, targets):
        return 2 * logits


class NoGradient(AbstractLoss):
    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def value(self, logits, targets):
        return jnp.sum(logits)


class FirstPairCounts(AbstractRowLoss):
    def value(self, image, text, beta, targets):
        return jnp.sum(image[0] * text[0]) * beta


class RootOfZero(AbstractRowLoss):
    def value(self, image, text, beta, targets):
        return beta * jnp.mean(jnp.linalg.norm(image - image, axis=1))


class DoubleRowLoss(AbstractRowLoss):
    def value(self, image, text, beta, targets):
        return beta * jnp.sum(image * text) * np.float64(2.0)


class RowLossOfWritten(fs.NTXent):
    def value(self, image, text, beta, targets):
        return super().value(image, text, beta, Targets(targets.rows, targets.columns))


# --- geometries -----------------------------------------------------------------------------------------


class Ascending(fs.Sphere):
    def velocity_from_rows(self, position, constants, image_force, text_force):
        found = super().velocity_from_rows(position, constants, image_force, text_force)
        return Rows(-found.image, -found.text)


class Turning(fs.Sphere):
    """Each image also follows the force on the one before: no gradient flow."""

    def velocity_from_rows(self, position, constants, image_force, text_force):
        found = super().velocity_from_rows(position, constants, image_force, text_force)
        turned = jnp.roll(found.image, 1, axis=0)
        image = normalise(position.image)
        return Rows(found.image + 0.01 * (turned - jnp.sum(turned * image, 1, keepdims=True) * image), found.text)


class NotTangent(fs.Sphere):
    def velocity_from_rows(self, position, constants, image_force, text_force):
        return Rows(image_force, text_force)


class RowsDisagree(fs.Sphere):
    def velocity(self, position, constants, force):
        found = super().velocity(position, constants, force)
        return Rows(2 * found.image, 2 * found.text)


class OtherSimilarity(fs.Sphere):
    def similarity(self, position, constants):
        return super().similarity(position, constants) + 0.1


class LosesTheWay(fs.Sphere):
    def to_start(self, position, constants):
        start = super().to_start(position, constants)
        return Start(image=start.image, text=start.image)


class OneTime(fs.Sphere):
    def to_start(self, position, constants):
        return Start(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (position.image, position.text)))


class RetractsFurther(fs.Sphere):
    def retract(self, position):
        return Rows(0.9 * position.image, 0.9 * position.text)


class SaysGamma(fs.Sphere):
    has_gamma: ClassVar[bool] = True


class SaysFrozen(fs.Sphere):
    frozen_directions: ClassVar[bool] = True


class StartsOutside(fs.Sphere):
    def exits(self, position, constants, in_steps):
        return {"output_zero": jnp.min(position.image)}


class DoubleRows(fs.Unnormalized):
    def rows(self, position, constants):
        return position.image * np.float64(1.0), position.text


class RefusesAll(fs.Sphere):
    def place(self, start):
        raise fs.FlowsimError("This start is not for me. Take another.")


class OtherPosition(fs.Sphere):
    def velocity(self, position, constants, force):
        return super().velocity(position, constants, force).image


class ScaledTake(fs.Sphere):
    """The rows are scaled to unit length, which hides the factor; the velocity that is brought back has it."""

    def take(self, position, constants, pairs, texts=None):
        return Rows(2 * position.image[pairs], 2 * position.text[pairs]), constants


class AffineTake(fs.Unnormalized):
    """Right for all that has the length of a start, but not linear."""

    def take(self, position, constants, pairs, texts=None):
        image, text = position.image[pairs], position.text[pairs]
        return Rows(normalise(image), normalise(text)), constants


class SortsTake(fs.Sphere):
    def take(self, position, constants, pairs, texts=None):
        pairs = jnp.sort(pairs)
        return Rows(position.image[pairs], position.text[pairs]), constants


class ReversesTake(fs.Sphere):
    def take(self, position, constants, pairs, texts=None):
        return Rows(position.image[pairs][::-1], position.text[pairs]), constants


class RefusesTake(fs.Sphere):
    def take(self, position, constants, pairs, texts=None):
        raise fs.FlowsimError("Not this batch. Take another.")


class NoRate(fs.Unnormalized):
    rate: ClassVar[float] = 0.0


# --- kernels --------------------------------------------------------------------------------------------


class OneWay(AbstractKernel):
    def apply(self, vectors):
        return vectors + jnp.cumsum(vectors, axis=0)


class PushesBack(AbstractKernel):
    def apply(self, vectors):
        return vectors - jnp.sum(vectors, axis=0)


class Drifts(AbstractKernel):
    def apply(self, vectors):
        return vectors + 1


class MeanOnly(AbstractKernel):
    def apply(self, vectors):
        return jnp.sum(vectors, axis=0)


class DoubleKernel(AbstractKernel):
    def apply(self, vectors):
        return vectors * np.linspace(1.0, 1.0, 1)


# --- pairings, swaps, rules -----------------------------------------------------------------------------


class AbstractOneDraw(AbstractPairing):
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False


class TooMuch(AbstractOneDraw):
    def targets(self, key, pairs, dtype):
        rows = 1.1 * jnp.eye(pairs, dtype=dtype)
        return Targets(rows=rows, columns=rows)


class SumsOfRowsOnly(AbstractOneDraw):
    def targets(self, key, pairs, dtype):
        rows = jnp.zeros((pairs, pairs), dtype).at[:, 0].set(1.0)
        return Targets(rows=rows, columns=rows)


class DoubleTargets(AbstractOneDraw):
    def targets(self, key, pairs, dtype):
        rows = jnp.roll(jnp.eye(pairs, dtype=np.float64), 1, axis=0)
        return Targets(rows=rows, columns=rows)


class SaysIdentity(fs.LabelNoise):
    identity: ClassVar[bool] = True


class OwnDice(AbstractOneDraw):
    def targets(self, key, pairs, dtype):
        return Targets(noise=jnp.asarray(0.1 + 1e-13 * next(_count), dtype))


class NeverRedrawn(AbstractPairing):
    redraw: ClassVar[float] = 0.0
    fresh: ClassVar[bool] = False

    def targets(self, key, pairs, dtype):
        return Targets()


class Halves(fs.HardSwap):
    """Changes rows where w = 1."""

    def apply(self, weights, image, text):
        image, text = super().apply(weights, image, text)
        return 0.5 * image, 0.5 * text


class Copies(fs.HardSwap):
    """Not undone by the same exchange: the text stays."""

    def apply(self, weights, image, text):
        return weights * image + (1 - weights) * text, text


class FlatWeights(fs.HardSwap):
    def draw(self, key, count, pairs, dim, dtype):
        return super().draw(key, count, pairs, dim, dtype)[0]


class DoubleWeights(fs.HardSwap):
    def draw(self, key, count, pairs, dim, dtype):
        return super().draw(key, count, pairs, dim, np.float64)


class SaysWholeRows(fs.HardSwap):
    @property
    def splits_rows(self):
        return False


class JaxSwap(fs.HardSwap):
    def apply(self, weights, image, text):
        return jnp.where(weights == 1, image, text), jnp.where(weights == 1, text, image)


class TooOften(AbstractSwap):
    fraction: ClassVar[float] = 1.5
    masks: ClassVar[int] = 4
    redraw: ClassVar[None] = None
    active: ClassVar[bool] = True

    def draw(self, key, count, pairs, dim, dtype):
        return jax.random.bernoulli(key, 0.5, (count, pairs, 1)).astype(dtype)

    def apply(self, weights, image, text):
        return weights * image + (1 - weights) * text, weights * text + (1 - weights) * image


class AscendingRule(AbstractRule):
    def velocity(self, descent):
        return -descent


class SaysGradient(fs.AdamLimit):
    is_gradient: ClassVar[bool] = True


class Flattens(AbstractRule):
    def velocity(self, descent):
        return jnp.ravel(descent)


class Divides(AbstractRule):
    def velocity(self, descent):
        return descent / jnp.abs(descent)


class DoubleRule(AbstractRule):
    def velocity(self, descent):
        return descent * np.float64(2.0)


# --- recipes and observables ----------------------------------------------------------------------------


def _rows(seed, pairs=6, dim=4):
    return fs.initial.uniform(pairs, dim).draw(seed).rows()


class OwnSeed(AbstractRecipe):
    def draw(self, seed=0):
        return Start(*_rows(next(_count)))


class LongRows(AbstractRecipe):
    def draw(self, seed=0):
        return Start(*(2 * rows for rows in _rows(seed)))


class SingleRows(AbstractRecipe):
    def draw(self, seed=0):
        return Start(*(rows.astype(np.float32) for rows in _rows(seed)))


class NoStart(AbstractRecipe):
    def draw(self, seed=0):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _rows(seed)


class NobodysStart(AbstractRecipe):
    """Similarities without γ, which no geometry takes."""

    def draw(self, seed=0):
        image, text = _rows(seed)
        return Start(similarity=image @ text.T)


def per_row(image, text):
    return (image * text).sum(axis=1)


def not_finite(image, text):
    return (image * text).sum() * np.nan


def raises(image, text):
    raise ZeroDivisionError("no embeddings")


def impure(image, text):
    return (image * text).sum() + 1e-13 * next(_count)


def _with_numpy(image, text):
    return np.linalg.norm(np.asarray(image).mean(axis=0) - np.asarray(text).mean(axis=0))


says_traceable = Observable("says_traceable", _with_numpy, "", "")
