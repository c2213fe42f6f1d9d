"""Tables of losses as other people have them: who orders unseen mixtures best, and finds the best one?

Each table is made by a law whose lowest point is known: exponentials in the weights (data mixing
laws), power laws in effective data with and without repetition, products of weights, thresholds.
Weights are Dirichlet draws around a prior, with zeros; the losses of six sets are averaged, and noise
of a tenth of their standard deviation is added.

On each table two choices are made in one run: today's, and the one before it (linear, log-linear,
quadratic, trees, and a process with one length scale on the weights themselves; one
cross-validation). They are judged without noise: on rows of the same draws, on the same rows with
sets whose losses moved unevenly, as those of larger models do, and by the regret of the mixture that
each takes for the best. ``TABLES_ROWS=64,512`` makes some sizes only.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import spearmanr

from tasks.surrogates import kinds
from tasks.surrogates.kinds import NAMES, cross_validate, fit
from tasks.surrogates.surrogate import Surrogate
from tests.benchmarks.measure import Ratio

Floats = NDArray[np.float64]
Law = Callable[[Floats], Floats]
"""From weights (n, p) to the losses of the sets, shape (n, S)."""

SETS = 6
ROWS = [int(rows) for rows in os.environ.get("TABLES_ROWS", "64,128,256,512").split(",")]
SIZES = [(rows, {64: 8, 128: 17, 256: 12, 512: 20}[rows]) for rows in ROWS]
"""Rows and weights."""
NOISE = 0.1
"""Of the standard deviation of the losses."""
UNSEEN, CANDIDATES = 400, 5000
BEFORE = ("linear", "log-linear", "quadratic", "gaussian process", "lightgbm")
WORSE = 0.005
"""A Spearman correlation that is lower by more than this is called worse."""


# Laws ---------------------------------------------------------------------------------------------


def exponential(size: int, generator: np.random.Generator) -> Law:
    """A floor and an exponential for each set, which two weights make small."""
    slopes = generator.normal(0, 0.7, (SETS, size))
    for row in slopes:
        row[generator.choice(size, 2, replace=False)] -= generator.uniform(2, 4, 2)
    height, floor = generator.uniform(0.5, 1.5, SETS), generator.uniform(1.5, 2.5, SETS)
    return lambda weights: floor + height * np.exp(weights @ slopes.T)


def power(size: int, generator: np.random.Generator) -> Law:
    """A power of effective data: each set has one domain of its own and learns a little from others."""
    useful = _useful(size, generator)
    exponent, height = generator.uniform(0.15, 0.4, SETS), generator.uniform(0.5, 1.5, SETS)
    return lambda weights: 2 + height * (weights @ useful.T + 0.002) ** -exponent


def repeated(size: int, generator: np.random.Generator) -> Law:
    """The same, where domains are small: their tokens are worth less with each repetition."""
    useful, supply = _useful(size, generator), generator.dirichlet(np.ones(size)) + 0.01
    exponent = generator.uniform(0.2, 0.5, SETS)
    return lambda weights: (
        2 + ((supply * (1 - np.exp(-weights / supply))) @ useful.T + 0.005) ** -exponent
    )


def products(size: int, generator: np.random.Generator) -> Law:
    """Pairs of domains help or hinder one another, and each hinders itself."""
    slopes = generator.normal(0, 0.5, (SETS, size))
    pairs = generator.normal(0, 0.8, (SETS, size, size)) + np.eye(size)
    return lambda weights: (
        3 + weights @ slopes.T + np.einsum("ni,sij,nj->ns", weights, pairs, weights)
    )


def thresholds(size: int, generator: np.random.Generator) -> Law:
    """Four domains help from some weight on; the others matter little."""
    steps, found = generator.uniform(0.02, 0.15, 4), generator.choice(size, 4, replace=False)
    heights, slopes = generator.uniform(0.1, 0.4, (4, SETS)), generator.normal(0, 0.1, (SETS, size))
    return lambda weights: 3 + weights @ slopes.T - (weights[:, found] > steps) @ heights


def _useful(size: int, generator: np.random.Generator) -> Floats:
    useful = generator.gamma(0.3, 0.3, (SETS, size)) + 0.01
    useful[np.arange(SETS), generator.integers(size, size=SETS)] += 1
    return useful


LAWS = (exponential, power, repeated, products, thresholds)


def drawn(rows: int, size: int, generator: np.random.Generator) -> Floats:
    """Weights (rows, size) around a prior, some wider than others; small ones are left out."""
    prior = 0.8 * generator.dirichlet(np.ones(size)) + 0.2 / size
    wide = generator.choice([0.3, 1.0, 3.0], rows)
    weights = np.stack([generator.dirichlet(prior * size * width) for width in wide])
    weights[weights < 0.003] = 0
    found: Floats = weights / weights.sum(axis=1, keepdims=True)
    return found


def lowest(law: Law, starts: Floats) -> float:
    """The least mean loss: where descents from the best of ``starts`` end, or one of these."""
    values = law(starts).mean(axis=1)

    def value(logits: Floats) -> float:
        weights = np.exp(logits - logits.max())
        return float(law((weights / weights.sum())[None]).mean())

    best = starts[np.argsort(values)[:3]]
    ends = [minimize(value, np.log(row + 1e-4), method="L-BFGS-B").fun for row in best]
    return float(min(values.min(), *ends))


# Two choices --------------------------------------------------------------------------------------


class Isotropic(Surrogate):
    """The process as it was: one length scale for all weights, found on 400 rows."""

    def _fit(self, weights: Floats, losses: Floats) -> None:
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        kernel = ConstantKernel(1.0, (1e-2, 1e4)) * RBF(1.0, (5e-2, 1e2))
        kernel += WhiteKernel(1e-2, (1e-8, 1e1))
        features, values = self._scale(weights), (losses - self._mean) / self._spread
        some = np.random.default_rng(0).permutation(len(values))[:400]
        self._process = self._fitted(kernel, features[some], values[some])
        if len(some) < len(values):
            self._process = self._fitted(self._process.kernel_, features, values, optimizer=None)

    def _fitted(self, kernel: Any, features: Floats, values: Floats, **options: Any) -> Any:
        from sklearn.gaussian_process import GaussianProcessRegressor

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return GaussianProcessRegressor(kernel, random_state=0, **options).fit(features, values)

    def predict(self, weights: Floats) -> Floats:
        values: Floats = self._process.predict(self._scale(weights))
        return self._mean + self._spread * values


def chosen_now(weights: Floats, losses: Floats) -> tuple[str, Surrogate]:
    """The name of the surrogate that is chosen, and its fit."""
    found = cross_validate(weights, {"mean": losses}, NAMES)
    return found.chosen, fit(found.members, weights, {"mean": losses})["mean"]


def chosen_before(weights: Floats, losses: Floats) -> tuple[str, Surrogate]:
    """The same by the rules that stood before."""
    with (
        mock.patch.dict(kinds.SURROGATES, {"gaussian process": Isotropic}),
        mock.patch.object(kinds, "MOST_REPEATS", 1),
    ):
        found = cross_validate(weights, {"mean": losses}, BEFORE)
        return found.chosen, fit(found.members, weights, {"mean": losses})["mean"]


class Judged(NamedTuple):
    """What became of one table."""

    law: str
    size: tuple[int, int]
    names: tuple[str, str]
    """Before, now."""
    seconds: tuple[float, float]
    """CPU time of choice and fit."""
    spearman: tuple[float, float]
    larger: tuple[float, float]
    """Spearman correlation with losses that moved unevenly."""
    regret: tuple[float, float]
    """In standard deviations of the losses, over the lowest point of the law."""
    covered: float
    """Share of unseen rows within two standard errors; NaN where the surrogate has none."""


def judged(
    make: Callable[[int, np.random.Generator], Law], rows: int, size: int, seed: int
) -> Judged:
    """Make a table, choose twice, and judge."""
    generator = np.random.default_rng([seed, rows, size, LAWS.index(make)])
    law = make(size, generator)
    weights = drawn(rows + UNSEEN, size, generator)
    seen, unseen = weights[:rows], weights[rows:]
    losses, later = law(seen).mean(axis=1), law(unseen) @ generator.uniform(0.2, 1, SETS)
    spread = float(losses.std())
    losses = losses + generator.normal(0, NOISE * spread, rows)
    wide = generator.dirichlet(np.full(size, 0.5), CANDIDATES)
    best = lowest(law, np.vstack([wide, unseen]))
    names, seconds, orders, larger, regrets, covered = [], [], [], [], [], float("nan")
    for choose in (chosen_before, chosen_now):
        begun = time.process_time()
        name, model = choose(seen, losses)
        seconds.append(time.process_time() - begun)
        predicted = model.predict(unseen)
        taken = wide[int(np.argmin(model.predict(wide)))]
        names.append(name)
        orders.append(float(spearmanr(predicted, law(unseen).mean(axis=1)).statistic))
        larger.append(float(spearmanr(predicted, later).statistic))
        regrets.append((float(law(taken[None]).mean()) - best) / spread)
        deviation = model.predict_std(unseen)
        if deviation is not None:
            covered = float((abs(predicted - law(unseen).mean(axis=1)) <= 2 * deviation).mean())
    pairs = [tuple(pair) for pair in (names, seconds, orders, larger, regrets)]
    return Judged._make([make.__name__, (rows, size), *pairs, covered])


# Told ---------------------------------------------------------------------------------------------


def measure(repeats: int) -> list[Ratio | str]:
    """``repeats`` tables of each law and size: two minutes of CPU time each."""
    return [told([
        judged(law, *size, seed) for size in SIZES for law in LAWS for seed in range(repeats)
    ])]  # fmt: skip


def told(found: list[Judged]) -> str:
    """A row for each law and size, and a line for all."""
    lines = [
        "| law | rows, weights | tables | Spearman before | now | of larger models before | now | regret "
        "before | now | now worse | chosen now | covered |",
        "|" + "---|" * 12,
    ]
    groups = {
        (one.law, one.size): [o for o in found if (o.law, o.size) == (one.law, one.size)]
        for one in found
    }
    lines += [_line(law, f"{size[0]}, {size[1]}", rows) for (law, size), rows in groups.items()]
    lines += [
        _line(law, "all", [o for o in found if o.law == law])
        for law in dict.fromkeys(o.law for o in found)
    ]
    lines.append(_line("all", "all", found))
    most = max(size for one in found for size in [one.size])
    large = [one.seconds for one in found if one.size == most]
    before, now = (max(pair[place] for pair in large) for place in (0, 1))
    return "\n".join(lines) + (
        f"\n\nNow worse: tables in which the Spearman correlation is lower by more than {WORSE}; in "
        "parentheses the largest loss. Regret: of the mixture that is taken for the best of "
        f"{CANDIDATES:,}, over the law's lowest point, in standard deviations of the losses. Covered: share "
        "of unseen rows within two standard errors.\n\n"
        f"CPU seconds for choice and fit with {most[0]} rows and {most[1]} weights, the slowest table: "
        f"{before:.1f} before, {now:.1f} now."
    )


def _line(law: str, size: str, rows: list[Judged]) -> str:
    def means(field: str) -> Iterator[str]:
        for place in (0, 1):
            yield f"{np.mean([getattr(row, field)[place] for row in rows]):.3f}"

    lost = [row.spearman[0] - row.spearman[1] for row in rows]
    worse = sum(loss > WORSE for loss in lost)
    names = [row.names[1] for row in rows]
    counts = {name: names.count(name) for name in NAMES if name in names}
    covered = [row.covered for row in rows if np.isfinite(row.covered)]
    cells = [
        law, size, str(len(rows)), *means("spearman"), *means("larger"), *means("regret"),
        f"{worse} ({max(0, *lost, 0):.3f})", ", ".join(f"{n} {count}" for n, count in counts.items()),
        f"{np.mean(covered):.2f}" if covered else "-",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
