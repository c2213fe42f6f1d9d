"""A scaled merge is the base model plus so many times what merging adds to it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from storage.artifact import describe
from storage.step import Runtime
from tasks.evaluation.losses_table import EvaluateConfig, evaluation_key
from tasks.evaluation.sweep import Job, PreparedSet, ScaledConfig, Sweeper
from tasks.machine.meter import Meter
from tasks.merging.average import MergeError
from tasks.mixtures.mixture import Mixture
from tasks.models.facts import facts_of
from tasks.models.folder import load_model, load_weights, save_model

pytest_plugins = ["tests.tasks.tiny_models", "tests.tasks.tiny_pool"]

Models = Mapping[str, Path]


def sums(models: Models, folder: Path, parts: dict[str, int], **how: object) -> list[float]:
    """Nats of a mixture per group."""
    scaled = how.get("scaled")
    config = EvaluateConfig() if scaled is None else ScaledConfig.model_validate({"scaled": scaled})
    base = how.get("base")
    given = (describe("model", base).digest, base) if isinstance(base, Path) else None
    ready = Sweeper(
        models,
        [PreparedSet("x", "0" * 64, folder)],
        config,
        Runtime(device="cpu", threads=1),
        given,
    )
    mixture = Mixture.of(parts)
    with Meter("cpu") as meter:
        (row,) = ready.evaluate([Job(mixture, mixture.label, ("x",))], meter, lambda *_: None)
    return row.group_nll


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_it_lies_so_many_times_as_far_from_the_base_model(
    scale: float,
    models: Models,
    llama: Path,
    windows: Callable[..., Path],
    texts: list[str],
    new: Callable[[], Path],
) -> None:
    """Against a model that is made in float64, saved, and evaluated alone."""
    folder, base = windows(texts), load_weights(llama)
    weights = {
        key: tensor.double()
        + scale
        * (
            (3 * load_weights(models["a"])[key].double() + load_weights(models["b"])[key].double())
            / 4
            - tensor.double()
        )
        for key, tensor in base.items()
    }
    model = load_model(llama)
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=False)
    save_model(model, made := new(), facts_of(models["a"]))
    found = sums(models, folder, {"a": 3, "b": 1}, scaled=scale, base=llama)
    assert_allclose(found, sums({"made": made}, folder, {"made": 1}), rtol=1e-6)
    plain = sums(models, folder, {"a": 3, "b": 1})
    assert max(abs(one - other) for one, other in zip(found, plain, strict=True)) > 1e-2


def test_at_a_scale_of_one_it_is_the_merge_bit_by_bit(
    models: Models, llama: Path, windows: Callable[..., Path], texts: list[str]
) -> None:
    folder = windows(texts)
    found = sums(models, folder, {"a": 1, "b": 1}, scaled=1.0, base=llama)
    assert found == sums(models, folder, {"a": 1, "b": 1})


def test_another_base_model_is_refused(
    models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    with pytest.raises(
        MergeError, match=r"model 'a' did not start from the base model [0-9a-f]{10}"
    ):
        sums(models, windows(texts), {"a": 1}, scaled=1.5, base=models["b"])


def test_its_losses_have_a_table_of_their_own() -> None:
    keys = {evaluation_key(ScaledConfig(scaled=scale)) for scale in (1.5, 2.0)}
    assert len({*keys, evaluation_key(EvaluateConfig())}) == 3
