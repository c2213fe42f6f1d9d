"""Floating-point operations of a model's forward pass and of its training, by formula."""

import math
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Attention(NamedTuple):
    """The shape on which the cost of attention depends: width is the number of heads times the size
    of a head, context the number of tokens in a sequence."""

    layers: int
    width: int
    context: int

    @classmethod
    def of(cls, model: "PreTrainedModel", context: int) -> Self | None:
        """The shape of a model that reads ``context`` tokens; None where its config has no such fields."""
        settings = model.config.get_text_config()
        layers, width = (getattr(settings, n, None) for n in ("num_hidden_layers", "hidden_size"))
        return cls(layers, width, context) if layers and width else None


def forward_flops(
    num_parameters: int, num_tokens: int, attention: Attention | None = None
) -> float:
    """Floating-point operations to evaluate ``num_tokens``: 2*N*D, and 4*layers*width*context*D.

    The first term is section 2.1 of Kaplan et al. 2020 (arXiv 2001.08361), the second, a third of
    12*L*H*Q*T per token, appendix B of the PaLM paper (Chowdhery et al. 2022, arXiv 2204.02311); it
    takes no discount for the causal mask.

    Args:
        num_parameters: those that take part in matrix products: without an embedding table that is
            only looked up, with one that is also the output layer.
        num_tokens: all tokens together, over all sequences and epochs.
        attention: shape of the model; None leaves the second term out.
    """
    scores = 4 * math.prod(attention) if attention else 0
    return float((2 * num_parameters + scores) * num_tokens)


def training_flops(
    num_parameters: int, num_tokens: int, attention: Attention | None = None, num_frozen: int = 0
) -> float:
    """6*N*D, and 12*layers*width*context*D: ``forward_flops``, and twice that for the way back.

    Args:
        num_frozen: parameters that get no gradient, though what lies before them does: they spare 2*D
            each, the half of their way back.
    """
    both_ways = 3 * forward_flops(num_parameters, num_tokens, attention)
    return both_ways - 2.0 * num_frozen * num_tokens
