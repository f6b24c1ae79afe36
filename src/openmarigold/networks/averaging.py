# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose weights are the mean of others'.

Networks that were trained further from the same weights often can be averaged: the mean does what each does, sometimes
better than any (Wortsman et al. 2022, "Model soups", arXiv 2203.05482). The mean of a network and of the same one after
fine-tuning keeps more of what it knew (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv
2109.01903). Of networks that were trained apart from each other the mean is noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import stated_license
from openmarigold.config import FloatDtype
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.networks.backbone import check_new_checkpoint, load_networks, save_networks
from openmarigold.networks.prompt import load_empty_prompt_embedding
from openmarigold.printing import printable

AVERAGED = "averaged_from"
"""Key in model_index.json: the share of each checkpoint, by its SHA-256."""
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "rescale_betas_zero_snr")
"""What a U-Net has learned with; the rest of a schedule is about the way of denoising alone."""
_NOT_OF_WEIGHTS = ("sample_size", "force_upcast")
"""Keys of config.json that say nothing about what the weights mean."""
_SUM = 2e-3
"""How far the sum of shares may be from 1, as of three times 0.333."""
_ROUNDING = 2.0**-8
"""Values that differ by less of themselves are the same, once stored in 16 bits and once in 32."""


def average_checkpoints(
    sources: Sequence[Checkpoint], destination: Path, *, shares: Sequence[float] = (), dtype: FloatDtype = "float32"
) -> None:
    """Writes a checkpoint whose U-Net, and image encoder where there is one, is the weighted mean of several.

    Autoencoder, scheduler, defaults and text encoder are those of the first one. There is no calibration, since those
    of the sources do not hold; the model card lists the sources.

    Args:
        sources: two or more checkpoints of one form.
        destination: folder to write, new or empty.
        shares: of each source, from 0 up, with the sum 1; nothing: equal ones.
        dtype: how the weights are stored. The mean is computed in float64.

    Raises:
        InvalidValueError: fewer than two sources, or shares that do not fit.
        CheckpointError: the sources are not of one form, or have different autoencoders or prompts; or one holds ONNX
            networks alone, or is damaged.
        OutputError: the destination holds files already, or cannot be written.
    """
    shares = _checked(shares, len(sources))
    for source in sources:
        check_new_checkpoint(source, destination)
    first, *others = sources
    for other in others:
        _check_alike(first, other)
    networks, *others_networks = (load_networks(source) for source in sources)
    for other, found in zip(others, others_networks, strict=True):
        for name, network in networks.items():
            _check_config(name, first, network, other, found[name])
        _check_same_latents(first, networks["vae"], other, found["vae"])
    for name, network in networks.items():
        if name != "vae":
            states = [one[name].state_dict() for one in (networks, *others_networks)]
            mean = _mean(states, shares)
            _check_finite(name, mean, getattr(torch, dtype), sources)
            network.load_state_dict(mean, strict=True, assign=True)

    def documents(folder: Path) -> None:
        _copy_terms(sources, folder)
        (folder / "README.md").write_text(_model_card(destination.resolve().name, sources, shares), encoding="utf-8")

    facts: dict[str, Any] = {"name": printable(destination.resolve().name), AVERAGED: {}}
    licenses = {stated_license(source) for source in sources}
    facts["license"] = licenses.pop() if len(licenses) == 1 else "see README.md"
    for share, source in zip(shares, sources, strict=True):
        digest = checkpoint_sha256(source)
        facts[AVERAGED][digest] = facts[AVERAGED].get(digest, 0.0) + share
    save_networks(first, networks, destination, dtype=dtype, documents=documents, facts=facts)


def _checked(shares: Sequence[float], count: int) -> list[float]:
    if count < 2:
        raise InvalidValueError(f"a mean needs two checkpoints or more; {count} given")
    if not shares:
        return [1 / count] * count
    if len(shares) != count:
        raise InvalidValueError(f"{len(shares)} shares for {count} checkpoints; give one for each")
    total = sum(shares)
    if not all(math.isfinite(share) and share >= 0 for share in shares) or abs(total - 1) > _SUM:
        text = " ".join(f"{share:g}" for share in shares)
        raise InvalidValueError(f"shares {text} have the sum {total:g}; give values from 0 up whose sum is 1")
    return [share / total for share in shares]


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    facts = [
        {
            "modality": one.modality.name,
            "space": one.modality.space,
            "invariance": one.invariance,
            "latent channels": one.latent_channels,
            "condition channels": one.condition_channels,
            "condition": one.condition_on,
            **{name: getattr(one.schedule, name) for name in _NOISE},
        }
        for one in (first, other)
    ]
    for what, value in facts[0].items():
        if value != facts[1][what]:
            raise CheckpointError(
                f"{first.directory} and {other.directory} differ in {what} ({value} and {facts[1][what]}); only "
                "checkpoints of one form can be averaged"
            )
    embeddings = [load_empty_prompt_embedding(one.directory, variant=one.variant).float() for one in (first, other)]
    if embeddings[0].shape != embeddings[1].shape or not torch.allclose(*embeddings, rtol=_ROUNDING, atol=1e-2):
        raise CheckpointError(
            f"{first.directory} and {other.directory} have different embeddings of the empty prompt; only checkpoints "
            "trained from the same start can be averaged"
        )


def _check_same_latents(first: Checkpoint, vae: Any, other: Checkpoint, others: Any) -> None:
    """U-Nets whose latents mean different things have no mean."""
    weights, others_weights = vae.state_dict(), others.state_dict()
    if weights.keys() != others_weights.keys() or not all(
        _is_same(value, others_weights[name]) for name, value in weights.items()
    ):
        raise CheckpointError(
            f"{first.directory} and {other.directory} have different autoencoders, so that their latents differ in "
            "meaning; only checkpoints trained from the same start can be averaged"
        )


def _is_same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and torch.allclose(value.float(), other.float(), rtol=_ROUNDING, atol=1e-6)


def _check_config(name: str, first: Checkpoint, network: Any, other: Checkpoint, others: Any) -> None:
    configs = [
        {key: value for key, value in dict(one.config).items() if key[0] != "_" and key not in _NOT_OF_WEIGHTS}
        for one in (network, others)
    ]
    different = sorted(key for key in {*configs[0], *configs[1]} if configs[0].get(key) != configs[1].get(key))
    if different:
        raise CheckpointError(
            f"{first.directory} and {other.directory}: {name}/config.json differs ({', '.join(different[:4])}); "
            "only checkpoints of one form can be averaged"
        )


def _mean(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Weight by weight, so that no whole network is in memory in float64; counters are those of the first."""
    return {
        name: _weighted([state[name] for state in states], shares) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _weighted(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, share in zip(values, shares, strict=True):
        total += share * value.double()
    return total.float()


def _check_finite(network: str, mean: Mapping[str, Tensor], dtype: torch.dtype, sources: Sequence[Checkpoint]) -> None:
    for name, value in mean.items():
        if not torch.isfinite(value.to(dtype)).all():
            raise CheckpointError(
                f"the mean of {' and '.join(str(source.directory) for source in sources)} has values in {network} "
                f"({name}) that are not finite, or too large for {dtype}; look for the source with "
                "`openmarigold checkpoint verify`, or give --dtype float32"
            )


def _copy_terms(sources: Sequence[Checkpoint], folder: Path) -> None:
    """Every license file, each text once; those of the first source keep their names."""
    texts: set[bytes] = set()
    for source in sources:
        for path in sorted(source.directory.glob("LICEN[SC]E*")):
            text = path.read_bytes()
            if text in texts:
                continue
            texts.add(text)
            number, place = 1, folder / path.name
            while place.exists():
                number += 1
                place = folder / f"{path.stem}-{number}{path.suffix}"
            place.write_bytes(text)


def _model_card(name: str, sources: Sequence[Checkpoint], shares: Sequence[float]) -> str:
    rows = [
        f"| {_cell(source.name)} | {share:g} | {_cell(stated_license(source) or 'not stated')} | "
        f"`{checkpoint_sha256(source)}` |\n"
        for source, share in zip(sources, shares, strict=True)
    ]
    return f"""# Model card: {_cell(name)}

The mean of the weights of these checkpoints (`openmarigold checkpoint average`). Their model cards say what each was
trained on; the terms of all of them hold for the mean. The command does not measure it, and it has no calibration.

| checkpoint | share | license, as stated there | SHA-256 (`openmarigold checkpoint info`) |
|---|---|---|---|
{"".join(rows)}"""


def _cell(text: str) -> str:
    """A stranger's text on one line of a table, without markup."""
    return re.sub(r"([|<>`\\\[\]])", r"\\\1", printable(text))
