# SPDX-License-Identifier: Apache-2.0
"""The model card of a checkpoint, README.md as the hub shows it, filled from what its run knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from openmarigold import __version__
from openmarigold.checkpoints.hub import as_hub_id
from openmarigold.checkpoints.integrity import license_of_folder
from openmarigold.modalities import find_modality
from openmarigold.training.recipe import CheckpointDefaults, MarigoldRecipe, to_table
from openmarigold.training.views import Mixture

_UNKNOWN_LICENSE = (
    "The base states no license in its folder. Its license, and the terms of the data below, may bind this model: add "
    "a `license` line to the top of this file."
)


def make_card(
    recipe: MarigoldRecipe,
    mixture: Mixture,
    *,
    base_dir: Path,
    step: int,
    scores: Mapping[str, float],
    validated: Sequence[str],
    inputs: Mapping[str, str],
) -> str:
    """The card of the checkpoint of a step.

    Args:
        base_dir: folder of the base, whose license counts.
        scores: of the validation at that step; empty where there was none.
        validated: what these were measured on, a line each.
        inputs: what the run started from, and its hash.
    """
    modality, checkpoint = find_modality(recipe.modality), recipe.checkpoint
    terms, hub_id = license_of_folder(base_dir), as_hub_id(Path(recipe.base))
    front = {"library_name": "diffusers", "tags": ["marigold", "openmarigold", modality.name]}
    front |= {"base_model": hub_id} if hub_id else {}
    # The hub does not know "see LICENSE" of a folder.
    front |= {"license": terms} if terms and " " not in terms else {}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {checkpoint.name}", ""]
    lines += [
        f"{modality.title[:1].upper()}{modality.title[1:]} from a single photo, by Marigold's method: the U-Net of "
        f"`{public_name(recipe.base)}`, fine-tuned with OpenMarigold {__version__}.",
        "",
        "This card was filled from the run. Add what a run cannot know: who made the model, what it is for, and where "
        "it fails.",
        "",
        "## Use",
        "",
        f"    openmarigold predict PHOTO --checkpoint FOLDER -o OUT  # steps: {checkpoint.num_inference_steps}",
        "",
        f"or `diffusers.{modality.pipeline_classes[0]}.from_pretrained(FOLDER)`. {_size(checkpoint)}",
        "",
        "## Training",
        "",
        *_table(["", ""], _facts(recipe, step, inputs)),
        "",
        *_table(["data", "share of samples", "pictures", "views"], _sources(mixture)),
        "",
        f"License of the base: {terms}. Check the terms of the data, too." if terms else _UNKNOWN_LICENSE,
        "",
        "## Validation",
        "",
    ]
    if scores:
        lines += [f"After step {step}, on {'; '.join(validated) or 'held-out scenes'}:", ""]
        lines += _table(["score", "value"], [(name, f"{value:.4g}") for name, value in scores.items()])
    else:
        lines += ["This checkpoint was not scored."]
    recipe_text = json.dumps({**to_table(recipe), "base": public_name(recipe.base)}, indent=2)
    return "\n".join([*lines, "", "## Recipe", "", "```json", recipe_text, "```", ""])


def public_name(base: str) -> str:
    """The public name of a base: its id on the hub, or the name of its folder or file without the path."""
    return as_hub_id(Path(base)) or Path(base).name


def _size(checkpoint: CheckpointDefaults) -> str:
    if not checkpoint.processing_resolution:
        return "Photos keep their size."
    return (
        f"Photos are resized so that their {checkpoint.processing_side} side is {checkpoint.processing_resolution} px."
    )


def _facts(recipe: MarigoldRecipe, step: int, inputs: Mapping[str, str]) -> list[tuple[str, str]]:
    config, lora = recipe.optimization, recipe.lora
    trained = f"low-rank updates of rank {lora.rank}, merged; also in `adapter/`" if lora.rank else "the whole U-Net"
    facts = [
        ("trained", trained),
        ("steps", f"{step} of {config.num_steps}"),
        ("batch", str(config.batch_size)),
        ("learning rate", f"{config.learning_rate:g}, warm-up {config.warmup_steps} steps, {config.decay} decay"),
        ("objective", recipe.objective.kind),
        ("precision", {"no": "float32"}.get(config.mixed_precision, config.mixed_precision)),
        ("zero terminal SNR", "yes" if recipe.timesteps.zero_terminal_snr else "no"),
        ("seed", str(recipe.seed)),
    ]
    return facts + [(f"SHA-256 of {name}", f"`{value[:16]}`") for name, value in inputs.items()]


def _sources(mixture: Mixture) -> list[tuple[str, ...]]:
    rows = []
    for number, (source, share) in enumerate(zip(mixture.sources, mixture.shares, strict=True)):
        height, width = mixture.size_of(number)
        rows.append((source.name, f"{100 * share:.1f} %", str(len(source)), f"{height}x{width}"))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
