"""Step: whether a given model is one whose losses mean what mixpool says, before anything is trained.

A loss here is that of each token given the tokens before it in its window, whatever else is in the
batch. Not every causal language model of transformers computes that, or not with every config: short
passes on random token ids tell. Notes say what is sound and still worth knowing.
"""

import json
import random
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.machine.device import choose_device
from tasks.models.folder import check_context, load_model, turning_lengths
from tasks.tokens.folder import FolderError
from tasks.tokens.tokenizer import Encoder

if TYPE_CHECKING:
    import torch

SHORT = 32
"""Token ids of a short pass, at most."""

TOLERANCE = 1e-3
"""By which logits may differ where they should not, in units of their standard deviation: rounding is
below 1e-5, and what unsound types do was 1e-2 and more."""

TRAINING, WINDOWS = "train.context_length", "evaluation.windows.context_length"

CHANCE = 1e-5
"""Share by which two losses of one training step may differ: a GPU adds in another order."""

CAUSAL_IF = {
    "is_decoder": "true",
    "causal": "true",
    "attn_type": '"uni"',
    "use_bidirectional_attention": "null",
}
"""Fields of configs that decide whether a token sees later ones, and the value at which it does not."""


class ProbeConfig(Config):
    """The contexts in which a recipe runs a given model."""

    train: int = Field(ge=2)
    """Token ids of a training's context."""
    windows: int = Field(ge=2)
    """Token ids of an evaluation's window."""


def build(
    config: ProbeConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Try ``inputs["model"]`` on ids of ``inputs["tokenizer"]``; the record has the notes.

    Raises:
        FolderError: the model is not sound (``check_sound``), or fails on a context.
        ValueError: a context is longer than it says that it takes.
    """
    import torch

    model = load_model(inputs["model"], choose_device(workspace.runtime))
    encoder = Encoder(inputs["tokenizer"])
    # Added tokens may stand for an image, of which there is none.
    added = encoder.tokenizer.get_added_tokens_decoder()
    ordinary = [number for number in range(encoder.vocab_size) if number not in added]
    drawn = random.Random(0).choices(ordinary, k=max(config.train, config.windows))
    ids = torch.tensor([drawn], device=model.device)
    check_context(model, config.train, TRAINING)
    check_context(model, config.windows, WINDOWS)
    state = torch.get_rng_state()
    with torch.inference_mode():
        _run(model, ids[:, : config.train], TRAINING)
        check_sound(model, ids[:, : config.windows])
    is_random = not state.equal(torch.get_rng_state())
    notes = _notes(model, ids[:, : config.train], is_random)
    (output / "probe.json").write_text(json.dumps(notes, indent=1))
    workspace.progress(1, 1, "model")
    return {"notes": notes}


def _run(model: Any, ids: "torch.Tensor", field: str) -> Any:
    try:
        return model(input_ids=ids, use_cache=False)
    # Whatever a class raises at ids that are too many, or not all that it wants.
    except Exception as error:
        said = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise FolderError(
            f"{field} {ids.shape[1]}: a {type(model).__name__} fails on so many token ids and nothing "
            f"else ({said}): lower it, or give a model of text alone"
        ) from error


def check_sound(model: Any, ids: "torch.Tensor") -> None:
    """Raise FolderError where logits are no function of the tokens before; ``ids`` is (1, length)."""
    import torch

    half = min(ids.shape[1], SHORT, *turning_lengths(model)) // 2
    start, end = ids[:, :half], ids[:, half : 2 * half]

    def logits(rows: "torch.Tensor") -> Any:
        return _run(model, rows, WINDOWS).logits[0, :half].float()

    settings = model.config.get_text_config()
    fields = (
        f"set {n} to {CAUSAL_IF[n]} in its config.json" for n in CAUSAL_IF if hasattr(settings, n)
    )
    causal, other = next(fields, "give one that is causal"), "give one of another type"
    before, whole, short = _sums(model), logits(ids), logits(ids[:, : 2 * half])
    by_chance = _moved(whole, logits(ids)).any()
    by_later = _moved(short, logits(torch.cat([start, start.flip(1)], 1))).all()
    by_batch = _moved(short, logits(torch.cat([start, end]))).all()
    for is_so, what, remedy in (
        (by_chance, "says something else at every pass", other),
        (by_later, "sees later tokens", causal),
        (by_batch, "goes by what else is in a batch", other),
        (_sums(model) != before, "writes its own weights when it runs", other),
    ):
        if is_so:
            raise FolderError(
                f"the base model, a {type(model).__name__}, {what}, so its losses would not be those of "
                f"tokens given the ones before: {remedy}"
            )


def _sums(model: Any) -> dict[str, str]:
    """A sum of each tensor that is saved, as text, in which NaN is itself."""
    import torch

    return {n: repr(t.sum(dtype=torch.float64).item()) for n, t in model.state_dict().items()}


def _moved(one: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
    """Positions whose logits differ by more than rounding; logits are (positions, vocabulary).

    Where a token is at the edge between two experts, rounding alone may choose: so one position says
    little, and all of them together much.
    """
    # A head may mask entries with minus infinity.
    farthest = (one - other).nan_to_num(0).abs().amax(1)
    return farthest > TOLERANCE * one[one.isfinite()].std()


def _notes(model: Any, ids: "torch.Tensor", is_random: bool) -> list[str]:
    """What is sound and worth knowing, from two passes of a training on ``ids``; no weight moves."""
    import torch
    import torch.nn.functional as F

    model.train()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    still = dict.fromkeys(sizes)

    def reached(name: str, parameter: "torch.nn.Parameter") -> None:
        del still[name]
        parameter.grad = None  # together they would take as much memory as the model

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(reached, name))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        run = _run(model, ids, TRAINING)
        loss = F.cross_entropy(run.logits[0, :-1].float(), ids[0, 1:])
        losses.append(loss.item())
    loss.backward()  # type: ignore[no-untyped-call]
    notes = []
    if still:
        notes.append(
            f"{sum(sizes[name] for name in still):,} of {sum(sizes.values()):,} parameters of the base "
            f"model get no gradient from {ids.shape[1]} tokens of text ({min(still)}, ...): they stay as "
            "they were given, and costs count them"
        )
    if getattr(run, "aux_loss", None) is not None:
        notes.append(
            "the base model's config.json asks for an auxiliary loss (output_router_logits), which "
            "mixpool does not train on: its loss is that of the next token alone"
        )
    if is_random or abs(losses[0] - losses[1]) > CHANCE * losses[0]:
        notes.append(
            f"the base model, a {type(model).__name__}, draws random numbers of its own: the same "
            "training does not come out bit by bit the same"
        )
    return notes


PROBE = Step("probe", 1, "probe", ProbeConfig, build, on_device=True)
