"""Export a mixture of adapters as one adapter for peft (Hugging Face), to be laid over the base model.

The rank is the sum of the members' ranks, and the adapter is exact (``tasks.training.adapter.mean_factors``).
peft's own mean of adapters (``add_weighted_adapter``, linear) averages A and B apart, which is another
model.

Files and names are those of peft 0.21 (huggingface/peft, src/peft/utils/save_and_load.py).
"""

import json
from pathlib import Path

import yaml

from flows.export.export import describe_mixture, members_of, new_folder
from flows.export.model_card import ADAPTER, UNKNOWN
from flows.run.stored import RunContent
from storage.store import Store
from tasks.mixtures.mixture import Mixture
from tasks.training.adapter import AdapterConfig, is_transposed, mean_factors


def export_adapter(
    store: Store, run: RunContent, mixture: Mixture, folder: Path, licence: str = UNKNOWN
) -> None:
    """Write the mean of a mixture's adapters, as peft reads one, and a card.

    Args:
        licence: of the adapter, as the hub calls it.

    Raises:
        ValueError: the folder is not empty, or a member was trained in full.
        MergeError: the members do not agree.
    """
    from safetensors.torch import save_file

    with new_folder(folder) as output:
        trained, models = members_of(store, run, mixture)
        if full := [name for name, record in trained.items() if "adapter" not in record.config]:
            raise ValueError(
                f"{full[0]} was trained in full, so there is no adapter to write: give --model in place "
                "of --adapter, or train with train.adapter"
            )
        mean = mean_factors([(models[n], float(w)) for n, w in mixture.weights.items()])
        layers = sorted({name.rpartition(".weight.")[0] for name in mean})
        # One recipe trains all members of a run: rank and alpha are the same for all.
        config = AdapterConfig.model_validate(trained[mixture.members[0]].config["adapter"])
        recipe = yaml.safe_load(store.backend.read(f"runs/{run.name}/recipe.yaml"))
        rank = mixture.size * config.rank
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": recipe["base"].get("path"),
            "r": rank,
            "lora_alpha": rank * config.scale,
            "lora_dropout": config.dropout,
            "target_modules": layers,
            "fan_in_fan_out": is_transposed(models[mixture.members[0]]),
            "bias": "none",
            "inference_mode": True,
        }
        (output / "adapter_config.json").write_text(json.dumps(settings, indent=1))
        tensors = {
            f"base_model.model.{layer}.lora_{factor}.weight": mean[f"{layer}.weight.{factor}"]
            for layer in layers
            for factor in "AB"
        }
        save_file(tensors, output / "adapter_model.safetensors")
        form = ADAPTER._replace(licence=licence)
        describe_mixture(store, run, mixture, trained, output, form)
