"""Each surrogate recovers the law it is made for; what cannot be fitted is said."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.stats import spearmanr

from tasks.surrogates import gaussian_process as process_module
from tasks.surrogates import kinds
from tasks.surrogates.average import Average
from tasks.surrogates.gaussian_process import GaussianProcess, roots
from tasks.surrogates.kinds import AVERAGE, SURROGATES, choose, cross_validate, fit
from tasks.surrogates.log_linear import LogLinear
from tasks.surrogates.surrogate import Surrogate

Floats = NDArray[np.float64]
UNITS = 5
SLOPES = np.array([-2.0, -1.0, 0.0, 0.5, 1.5])
OPTIMUM = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def simplex(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).dirichlet(np.ones(UNITS), rows)


def linear(weights: Floats) -> Floats:
    found: Floats = 1.0 + weights @ SLOPES
    return found


def bowl(weights: Floats) -> Floats:
    found: Floats = 0.8 + ((weights - OPTIMUM) ** 2 @ np.array([1.0, 2.0, 3.0, 1.0, 2.0]))
    return found


def law(weights: Floats) -> Floats:
    found: Floats = 0.7 + 0.5 * np.exp(weights @ SLOPES)
    return found


def stepwise(weights: Floats) -> Floats:
    return 1.0 - 0.3 * (weights[:, 0] > 0.2) - 0.2 * (weights[:, 1] > 0.15) + 0.1 * weights[:, 2]


def order(surrogate: Surrogate, of: Callable[[Floats], Floats], rows: int = 300) -> float:
    """Spearman correlation on weights that were not seen."""
    weights = simplex(rows, seed=9)
    return float(spearmanr(surrogate.predict(weights), of(weights)).statistic)


def test_linear_orders_a_linear_loss_exactly() -> None:
    weights = simplex(8)
    fitted = SURROGATES["linear"]().fit(weights, linear(weights))
    unseen = simplex(300, seed=9)
    assert (np.argsort(fitted.predict(unseen)) == np.argsort(linear(unseen))).all()
    assert not fitted.notes


def test_quadratic_finds_the_bottom_of_a_bowl_within_the_resolution() -> None:
    weights = simplex(60)
    fitted = SURROGATES["quadratic"]().fit(weights, bowl(weights))
    near = (
        OPTIMUM
        + 0.01 * np.array([step for step in np.ndindex((3,) * UNITS) if sum(step) == UNITS])
        - 0.01
    )
    best = near[int(np.argmin(fitted.predict(near)))]
    assert np.abs(best - OPTIMUM).max() < 0.01
    assert order(fitted, bowl) > 0.9999


@pytest.mark.parametrize("seed", range(3))
def test_log_linear_recovers_the_law(seed: int) -> None:
    weights = simplex(40, seed)
    fitted = LogLinear().fit(weights, law(weights))
    assert fitted.floor == pytest.approx(0.7, abs=0.01)
    assert fitted.slopes - fitted.slopes.mean() == pytest.approx(SLOPES - SLOPES.mean(), abs=0.05)
    assert order(fitted, law) > 0.9999
    assert (fitted.predict(simplex(500, 5)) > fitted.floor).all()


def test_log_linear_shrugs_at_an_outlier() -> None:
    weights = simplex(40)
    losses = law(weights)
    losses[3] += 2.0
    assert order(LogLinear().fit(weights, losses), law) > 0.99


def test_a_gaussian_process_learns_any_smooth_loss_and_knows_its_doubt() -> None:
    weights = simplex(80)
    process = SURROGATES["gaussian process"]().fit(weights, law(weights) + bowl(weights))
    assert order(process, lambda w: law(w) + bowl(w)) > 0.99
    far, near = process.predict_std(np.eye(UNITS)), process.predict_std(weights)
    assert far is not None
    assert near is not None
    assert far.min() > 3 * near.max()


def test_a_gaussian_process_of_many_rows_uses_all_of_them() -> None:
    weights = simplex(450)
    process = SURROGATES["gaussian process"]().fit(weights, bowl(weights))
    assert order(process, bowl) > 0.999
    assert "on 150 of 450 rows" in process.notes[0]


@pytest.mark.parametrize("with_trend", [False, True])
def test_the_slope_of_a_process_is_that_of_its_posterior(with_trend: bool) -> None:
    weights, values = simplex(25), simplex(25, 1)[:, 0]
    trend = GaussianProcess(trend=True)._trend(weights)
    at = np.random.default_rng(0).normal(-1, 0.5, UNITS + 1 + with_trend)

    def posterior(logarithms: Floats) -> tuple[float, Floats]:
        return process_module._improbability(logarithms, roots(weights), trend, values)

    measured = approx_fprime(at, lambda logarithms: posterior(logarithms)[0], 1e-7)
    assert posterior(at)[1] == pytest.approx(measured, rel=1e-4, abs=1e-4)


def test_a_trend_tells_the_losses_of_averages_from_few_mixtures() -> None:
    """Each model's loss is a paraboloid around its own lowest point; all are equally far apart."""
    units = 12
    alone = np.random.default_rng(0).normal(0, 0.3, units)

    def averaged(weights: Floats) -> Floats:
        found: Floats = 3 + weights @ alone + (weights**2).sum(axis=1)
        return found

    whole = np.ones((1, units)) / units
    without = (1 - np.eye(units)) / (units - 1)
    pairs = np.eye(units) / 2 + np.roll(np.eye(units), 1, axis=1) / 2
    seen = np.vstack([whole, without, pairs[:6]])
    unseen = np.random.default_rng(2).dirichlet(np.ones(units), 200)
    found = fit(["trend process"], seen, {"x": averaged(seen)})["x"].predict(unseen)
    assert spearmanr(found, averaged(unseen)).statistic > 0.999
    plain = fit(["gaussian process"], seen, {"x": averaged(seen)})["x"].predict(unseen)
    assert spearmanr(plain, averaged(unseen)).statistic < 0.99


def test_a_process_is_the_textbooks_and_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    weights, unseen = simplex(40), simplex(30, 9)
    losses = bowl(weights)
    process = GaussianProcess(roots).fit(weights, losses)
    variance = (process._deviation / losses.std()) ** 2
    noise = float((process._factor[0][0, 0]) ** 2 - 1) * variance
    kernel = ConstantKernel(variance) * RBF(1 / process._inverse) + WhiteKernel(noise)
    places = process._place(roots(weights))
    other = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0)
    other.fit(places, (losses - losses.mean()) / losses.std())
    means, stds = other.predict(process._place(roots(unseen)), return_std=True)
    assert process.predict(unseen) == pytest.approx(losses.mean() + losses.std() * means, rel=1e-5)
    certain = losses.std() * np.sqrt(np.maximum(stds**2 - noise, 0))
    assert process.predict_std(unseen) == pytest.approx(certain, rel=1e-2, abs=1e-5)


def test_square_roots_order_a_power_law_better_than_weights_do() -> None:
    def power(weights: Floats) -> Floats:
        found: Floats = ((weights + 0.002) ** -0.3).sum(axis=1)
        return found

    weights = simplex(60)
    names = ("gaussian process", "root process", "log process")
    kept = {name: SURROGATES[name]().fit(weights, power(weights)) for name in names}
    assert order(kept["root process"], power) > 0.94
    assert order(kept["root process"], power) > order(kept["gaussian process"], power) + 0.01
    assert order(kept["log process"], power) > order(kept["gaussian process"], power) + 0.01


def test_a_weight_without_effect_has_a_longer_scale_than_one_with() -> None:
    weights = simplex(120)
    process = GaussianProcess().fit(weights, np.sin(12 * weights[:, 0]))
    lengths = 1 / process._inverse
    assert lengths[0] < 0.7 * lengths[1:].min()


def test_an_average_is_the_mean_and_doubts_what_its_members_dispute() -> None:
    weights, unseen = simplex(40), simplex(30, 9)
    names = ["quadratic", "root process"]
    average = fit(names, weights, {"x": bowl(weights)})["x"]
    one, two = (fit([name], weights, {"x": bowl(weights)})["x"] for name in names)
    means = np.array([one.predict(unseen), two.predict(unseen)])
    assert isinstance(average, Average)
    assert average.predict(unseen) == pytest.approx(means.mean(axis=0))
    own = two.predict_std(unseen)
    assert one.predict_std(unseen) is None
    assert own is not None
    assert average.predict_std(unseen) == pytest.approx(np.sqrt(own**2 + means.var(axis=0)))
    assert not fit(["quadratic", "lightgbm"], weights, {"x": bowl(weights)})["x"].smooth


def test_an_average_is_chosen_where_it_orders_best() -> None:
    weights = simplex(70)
    clean = law(weights) + 0.5 * bowl(weights)
    losses = {"x": clean + np.random.default_rng(3).normal(0, 0.1 * clean.std(), 70)}
    found = cross_validate(weights, losses)
    means = found.table.set_index("surrogate")["spearman"]
    assert means[AVERAGE] > means.drop(AVERAGE).max() - 0.01
    alone = cross_validate(weights, losses, ["linear", "quadratic"])
    assert AVERAGE not in {*alone.table["surrogate"]}
    assert means[found.chosen] >= means.max() - 0.001


def test_many_rows_or_targets_are_cut_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[tuple[int, int]] = []
    unseen = kinds._unseen

    def counted(*given: Any) -> Any:
        cuts.append(given[3])
        return unseen(*given)

    monkeypatch.setattr(kinds, "_unseen", counted)
    for rows, targets, repeats in ((60, 1, 5), (400, 1, 3), (60, 2, 2), (60, 9, 1)):
        cuts.clear()
        weights = simplex(rows)
        losses = {str(n): linear(weights) for n in range(targets)}
        cross_validate(weights, losses, ["linear"], seed=4)
        assert [*dict.fromkeys(cuts)] == [(4, repeat) for repeat in range(repeats)]


def test_trees_learn_steps_and_say_the_same_twice() -> None:
    weights = simplex(150)
    trees = [SURROGATES["lightgbm"]().fit(weights, stepwise(weights)) for _ in range(2)]
    assert order(trees[0], stepwise) > 0.9
    assert order(trees[0], stepwise) > order(
        fit(["linear"], weights, {"x": stepwise(weights)})["x"], stepwise
    )
    assert (trees[0].predict(weights) == trees[1].predict(weights)).all()


@pytest.mark.parametrize("name", SURROGATES)
def test_few_rows_get_a_clear_answer(name: str) -> None:
    weights = simplex(4)
    with pytest.raises(ValueError, match="2 rows are too few to fit a surrogate: 3 are needed"):
        SURROGATES[name]().fit(weights[:2], linear(weights[:2]))
    with pytest.raises(ValueError, match="do not fit"):
        SURROGATES[name]().fit(weights, linear(weights[:3]))
    with pytest.raises(ValueError, match="not finite"):
        SURROGATES[name]().fit(weights, np.array([1.0, np.nan, 1.0, 1.0]))
    few = SURROGATES[name]().fit(weights, linear(weights))
    assert np.isfinite(few.predict(np.eye(UNITS))).all()
    if name in {"linear", "log-linear", "quadratic"}:
        assert "from 4 rows: it is fitted by ridge regression" in few.notes[0]


@pytest.mark.parametrize("name", SURROGATES)
def test_equal_losses_are_predicted_as_they_are(name: str) -> None:
    weights = simplex(12)
    fitted = SURROGATES[name]().fit(weights, np.full(12, 1.5))
    assert fitted.predict(simplex(20, 1)) == pytest.approx(np.full(20, 1.5), abs=1e-3)


def test_cross_validation_tells_which_law_it_is() -> None:
    weights = simplex(60)
    noise = np.random.default_rng(1).normal(0, 0.002, 60)
    losses = {"law": law(weights) + noise, "same": np.full(60, 2.0)}
    table, chosen, members, notes = cross_validate(weights, losses, seed=3, shares={"law": 1.0})
    assert not notes
    assert [name for name in table["surrogate"].unique() if name != AVERAGE] == [*SURROGATES]
    assert (table["rows"] == 60).all()
    own = table[table["target"] == "law"].set_index("surrogate")
    assert own["spearman"]["log-linear"] > 0.99
    assert own["rmse"]["log-linear"] < 0.006
    assert own["rmse"].idxmin() == "log-linear"
    assert (table[table["target"] == "same"]["spearman"] == 0).all()
    assert own["spearman"][chosen] >= own["spearman"].max() - 0.001
    assert {*table.loc[table["chosen"], "surrogate"]} == {chosen}
    assert members == (chosen,) or chosen == AVERAGE
    again = cross_validate(weights, losses, seed=3, shares={"law": 1.0})
    assert table.equals(again.table)


def test_ties_go_to_the_simpler_and_targets_count_as_weighed() -> None:
    import pandas as pd

    rows = [
        ("lightgbm", "a", 0.9001), ("linear", "a", 0.9), ("quadratic", "a", 0.5),
        ("lightgbm", "b", 0.5), ("linear", "b", 0.5), ("quadratic", "b", 0.99),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["surrogate", "target", "spearman"])
    assert choose(table) == "quadratic"
    assert choose(table, {"a": 1.0, "b": 0.0}) == "linear"


def test_surrogates_that_fail_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(LogLinear):
        def predict(self, weights: Floats) -> Floats:
            return np.full(len(weights), np.inf)

    monkeypatch.setitem(SURROGATES, "log-linear", Broken)
    weights = simplex(10)
    table, _, _, notes = cross_validate(weights, {"x": linear(weights)}, ["linear", "log-linear"])
    assert table["surrogate"].tolist() == ["linear"]
    assert notes == [
        "The log-linear surrogate was left out, since it failed: it predicts a loss that is not finite"
    ]
    with pytest.raises(ValueError, match="no surrogate could be fitted"):
        cross_validate(weights, {"x": linear(weights)}, ["log-linear"])
    with pytest.raises(ValueError, match="'cubic', which is unknown"):
        cross_validate(weights, {"x": linear(weights)}, ["cubic"])
    with pytest.raises(ValueError, match="no surrogate is named that can be fitted"):
        cross_validate(weights, {"x": linear(weights)}, [AVERAGE])
    with pytest.raises(ValueError, match="3 rows in 5 folds"):
        cross_validate(weights[:3], {"x": linear(weights[:3])})
