"""The list of all steps: each computes an artifact once, and the store keeps it under a key.

Nothing else makes an artifact of other artifacts. A scan is no step, because it depends on what
earlier scans decided. Nor is evaluating mixtures, which has a table of its own
(``tasks.evaluation.losses_table``).
"""

from typing import Any

from storage.step import Step
from tasks.evaluation.set_part import PART
from tasks.evaluation.token_nats import NATS
from tasks.evaluation.uphill import FLATNESS
from tasks.evaluation.window import WINDOW
from tasks.models.given import IMPORT_MODEL
from tasks.models.initialise import INITIALISE
from tasks.models.probe import PROBE
from tasks.search.descent import DESCEND
from tasks.tokens.tokenize import TOKENIZE
from tasks.tokens.tokenizer import TRAIN_TOKENIZER
from tasks.training.localise import LOCALISE
from tasks.training.train import TRAIN

STEPS: tuple[Step[Any], ...] = (
    TRAIN_TOKENIZER,  # documents to a tokenizer
    TOKENIZE,  # documents to one file of token ids
    WINDOW,  # documents of an evaluation set to windows of tokens
    PART,  # some of the windows of an evaluation set, for a race
    INITIALISE,  # a model with random weights
    IMPORT_MODEL,  # a model that somebody gave
    PROBE,  # a model that somebody gave to what it does with token ids
    LOCALISE,  # a model and two texts to the layers in which the first makes larger gradients
    TRAIN,  # a model trained on one or several token files
    NATS,  # a model and the windows of an evaluation set to the nats of each token
    FLATNESS,  # a model and its text to how sharp its minimum is
    DESCEND,  # the pool of a search to mixtures, down the gradient of the merged model
)

MODELS = tuple(step for step in STEPS if step.kind == "model")
"""Those that make a model."""
