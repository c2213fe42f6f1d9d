"""Distillation: in the first steps of a training, a student learns from teachers beside its text.

The loss is (1 - share) * CE + share * T^2 * KL(teacher || student), both per token, while there is a
teacher, and CE from then on (Blakeney et al. 2022; T^2 by Hinton et al. 2015, arXiv 1503.02531). Of
several teachers one is drawn at each step, a third of the passes of the mean of three. Teachers are
loaded when the first step needs them, and let go behind the last, so a training that goes on behind it
loads none.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.step import Meter
from tasks.machine.flops import Attention, forward_flops
from tasks.merging.average import average_weights, check_mergeable
from tasks.models.facts import facts_of
from tasks.models.folder import check_limit, load_model, load_weights
from tasks.training.config import TeacherConfig, TrainConfig
from tasks.training.gradients import GradientsOf, LogitsOf, logits_function

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PREFIX = "teacher-"
"""Inputs ``teacher-0``, ``teacher-1`` are a teacher each; ``teacher-0.0000``, ``teacher-0.0001`` are
averaged to one."""


def split_off(inputs: dict[str, Path]) -> list[dict[str, Path]]:
    """Take the teachers out of a training's inputs: for each the models of which it is the average."""
    found: dict[str, dict[str, Path]] = {}
    for name in sorted(inputs):
        if name.startswith(PREFIX):
            found.setdefault(name.partition(".")[0], {})[name] = inputs.pop(name)
    return [*found.values()]


class Distillation:
    """A batch's gradients: with a teacher in the first steps, then those that it is given."""

    def __init__(
        self,
        config: TrainConfig,
        student: "PreTrainedModel",
        base: Path,
        teachers: Sequence[Mapping[str, Path]],
        alone: GradientsOf,
        meter: Meter,
    ) -> None:
        """Check the teachers; none is loaded yet.

        Args:
            base: folder of the model that the student starts from.
            teachers: for each, by name, the folders of which it is the average.
            alone: the gradients without a teacher.
            meter: is told the operations of each teacher's pass.

        Raises:
            ValueError: there is none, or one has another tokenizer, another number of embeddings or a
                shorter context, or the parts of one cannot be averaged.
        """
        if config.teacher is None or not teachers:
            raise ValueError("train.teacher is given without a teacher: give inputs teacher-0, ...")
        self._rules, self._seed, self._context = config.teacher, config.seed, config.context_length
        self._device, self._precision = student.device, config.precision
        self._student, self._alone = logits_function(student, config.precision), alone
        self._teachers, self._meter = teachers, meter
        self._loaded: list[_Teacher] = []
        self.steps = math.ceil(Fraction(str(self._rules.stop)) * config.steps)
        """How many steps have a teacher: one at least."""
        self.passes = self.steps * (1 if self._rules.choice == "random" else len(teachers))
        """Forward passes of teachers in the whole training."""
        for folders in teachers:
            for name, folder in folders.items():
                _check(name, folder, base, student, config.context_length)
            check_mergeable({name: facts_of(folder) for name, folder in folders.items()})

    def __call__(self, tokens: "torch.Tensor", step: int) -> "torch.Tensor":
        """Leave the gradients at the student's parameters; the cross entropy of the batch."""
        if step >= self.steps:
            self._loaded.clear()
            return self._alone(tokens, step)
        if not self._loaded:
            self._loaded = [self._load(folders) for folders in self._teachers]
        chosen = self._loaded
        if self._rules.choice == "random":
            chosen = [chosen[drawn(self._seed, step, len(chosen))]]
        target = mean_probabilities([t.logits_of for t in chosen], tokens, self._rules.temperature)
        self._meter.add(flops=tokens[:, 1:].numel() * sum(t.flops for t in chosen))
        loss, cross_entropy = losses_of(self._student(tokens), tokens, target, self._rules)
        loss.backward()  # type: ignore[no-untyped-call]
        return cross_entropy

    def _load(self, folders: Mapping[str, Path]) -> "_Teacher":
        import torch

        first = next(iter(folders.values()))
        model = load_model(first, str(self._device)).requires_grad_(requires_grad=False)
        if len(folders) > 1:
            members = {name: load_weights(folder) for name, folder in folders.items()}
            merged, named = average_weights(members, dict.fromkeys(members, 1)), model.state_dict()
            with torch.no_grad():
                for name, tensor in merged.items():
                    named[name].copy_(tensor)
        return _Teacher(model, self._precision, self._context)


class _Teacher:
    """A model in evaluation mode, and what a pass of it costs for each token."""

    def __init__(self, model: "PreTrainedModel", precision: str, context: int) -> None:
        self.logits_of = logits_function(model, precision)
        self.flops = forward_flops(model.num_parameters(), 1, Attention.of(model, context))


def _check(name: str, folder: Path, base: Path, student: "PreTrainedModel", context: int) -> None:
    from transformers import AutoConfig

    one, other = facts_of(folder).tokenizer, facts_of(base).tokenizer
    if one != other:
        raise ValueError(
            f"{name} knows the ids of the tokenizer {one[:10]}, and the student those of {other[:10]}: give "
            "a teacher that was trained with the student's tokenizer"
        )
    settings = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    ours = student.config.get_text_config().vocab_size
    if settings.vocab_size != ours:
        raise ValueError(
            f"{name} has {settings.vocab_size} embeddings and the student {ours}, so their probabilities "
            "cannot be compared: give a teacher with as many"
        )
    check_limit(settings, context, f"{name}: train.context_length")


def drawn(seed: int, step: int, number: int) -> int:
    """Which of so many teachers teaches at a step: a function of these three, on every machine."""
    digest = hashlib.sha256(f"teacher {seed} {step}".encode()).digest()
    return int.from_bytes(digest) % number


def mean_probabilities(
    teachers: Sequence[LogitsOf], tokens: "torch.Tensor", temperature: float
) -> "torch.Tensor":
    """Mean over teachers of softmax(logits / temperature): float32, shape (B * context, V)."""
    import torch

    with torch.no_grad():
        each = (teacher(tokens).float().flatten(0, 1) for teacher in teachers)
        total = torch.softmax(next(each).div_(temperature), -1)
        for logits in each:
            total += torch.softmax(logits.div_(temperature), -1)
        return total.div_(len(teachers)) if len(teachers) > 1 else total


def losses_of(
    logits: "torch.Tensor", tokens: "torch.Tensor", target: "torch.Tensor", rules: TeacherConfig
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The student's loss, and its cross entropy without a gradient; both in nats per token.

    Of KL(teacher || student) the teacher's entropy is left out: it has no gradient, and computing it would
    take longer than all the rest of the loss.

    Args:
        logits: shape (B, context, V).
        tokens: shape (B, context + 1).
        target: the teacher's probabilities, shape (B * context, V).
    """
    import torch.nn.functional as F

    flat = logits.float().flatten(0, 1)
    own = F.log_softmax(flat, -1)
    cross_entropy = F.nll_loss(own, tokens[:, 1:].flatten())
    softened = own if rules.temperature == 1 else F.log_softmax(flat / rules.temperature, -1)
    against = -(target * softened).sum() / len(flat)
    taught = rules.share * rules.temperature**2 * against
    return (1 - rules.share) * cross_entropy + taught, cross_entropy.detach()


def in_words(config: Mapping[str, Any], inputs: Iterable[str]) -> str:
    """How a training was taught, of its record's config and names of inputs; empty where it was not."""
    if not (rules := config.get("teacher")):
        return ""
    names = [name for name in inputs if name.startswith(PREFIX)]
    number = len({name.partition(".")[0] for name in names})
    who = f"the average of {len(names)} models" if len(names) > number else f"{number} teachers"
    if number > 1:
        who += ", one at random at each step" if rules["choice"] == "random" else ", their mean"
    elif len(names) == 1:
        who = "one teacher"
    return (
        f"{who}; for the first {rules['stop']:.0%} of the steps, with a share of {rules['share']:g} of the "
        f"loss, at temperature {rules['temperature']:g}"
    )
