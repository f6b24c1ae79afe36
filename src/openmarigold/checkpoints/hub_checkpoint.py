# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on the hub: check its small files, choose the large files that are needed, and fetch only those."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from openmarigold.checkpoints.channels import has_image_encoder
from openmarigold.checkpoints.empty_prompt import cached_embedding_path, is_any_embedding_cached
from openmarigold.checkpoints.hub import Repository, fetch, find_repository, keep_revision, remove_damaged
from openmarigold.checkpoints.known import KNOWN, check_family, check_known
from openmarigold.checkpoints.weight_files import (
    EMBEDDING_FILE,
    GRAPH_FILES,
    NETWORK_FILES,
    NETWORK_STEM,
    PICKLE_SUFFIXES,
    TEXT_ENCODER_STEM,
    conversion_command,
    embedding_file,
    networks_of,
    parts_of,
    plain_pickles,
    read_json,
    warn_of_half,
    weight_patterns,
)
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError
from openmarigold.printing import quoted_logger

_INDEX = "model_index.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_SMALL_FILES = (_INDEX, "scheduler/*.json", "unet/config.json", "vae/config.json", "image_encoder/config.json")
_NOT_REQUIRED = ("README.md", "LICEN[SC]E*", "calibration.json")

_log = quoted_logger(__name__)


def open_checkpoint(
    hub_id: str, *, revision: str | None = None, local_files_only: bool = False, fetch_again: bool = False
) -> Repository:
    """The repository of a checkpoint, with its small files downloaded; only these are checked.

    Args:
        hub_id: its id.
        revision: branch, tag or commit.
        local_files_only: use an earlier download.
        fetch_again: remove damaged files of an earlier download, so that they are downloaded again.

    Raises:
        CheckpointError: it is not a supported checkpoint in a known layout, or is not available.
        MissingExtraError: huggingface_hub is not installed.
    """
    check_known(hub_id)
    repository = find_repository(hub_id, revision=revision, local_files_only=local_files_only)
    if fetch_again:
        if repository.offline is not None:
            raise CheckpointError(f"damaged files of {hub_id} cannot be downloaded again: {repository.offline}")
        for name in remove_damaged(repository):
            _log.warning("%s was damaged and is downloaded again", repository.path(name))
    if _INDEX not in repository.files:
        some = ", ".join(sorted(repository.files)[:4]) or "nothing"
        raise CheckpointError(
            f"{hub_id} has no {_INDEX}, so it is not a checkpoint in diffusers layout (it holds {some}); check the "
            "name, or --revision"
        )
    fetch(repository, _matching(repository, _SMALL_FILES))
    fetch(repository, _matching(repository, _NOT_REQUIRED) if repository.offline is None else ())
    scheduler, unet = (
        read_json(repository.path(name)) if name in repository.files else None
        for name in (_SCHEDULER, "unet/config.json")
    )
    index = repository.path(_INDEX)
    check_family(read_json(index), index, name=hub_id, scheduler=scheduler, unet=unet)
    if scheduler is None:
        raise CheckpointError(f"{hub_id} has no {_SCHEDULER}; a checkpoint holds scheduler/, unet/ and vae/")
    try:
        NoiseSchedule.from_config(scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{hub_id}, {_SCHEDULER}: {error}") from error
    return repository


def network_files(repository: Repository, variant: str | None) -> list[str]:
    """Names of the networks' files, chosen from the files of the repository.

    Raises:
        CheckpointError: the variant is not published, or the weights are pickles only.
    """
    image_encoder = _has_image_encoder(repository)
    networks = networks_of(image_encoder=image_encoder)
    if _is_converted(repository):
        if variant is not None:
            raise CheckpointError(f"{repository.hub_id} holds converted networks, which have no variant; leave it out")
        folders = tuple(f"{name}/" for name in networks)
        torch_files = tuple(f"{folder}{NETWORK_STEM}" for folder in folders)
        return [name for name in repository.files if name.startswith(folders) and not name.startswith(torch_files)]
    parts = parts_of(image_encoder=image_encoder)
    weights = [name for part in parts for name in part_files(repository, part, variant=variant)]
    return weights + [GRAPH_FILES[name] for name in networks if GRAPH_FILES[name] in repository.files]


def part_files(repository: Repository, part: str, *, stem: str = NETWORK_STEM, variant: str | None = None) -> list[str]:
    """Names of the configuration and weights of one network: of `variant`; without one the plain weights, else fp16.

    Raises:
        CheckpointError: there are none, or pickles only.
    """
    prefix = f"{part}/" if part else ""
    config = [f"{prefix}config.json"]
    for candidate in (variant,) if variant else (None, "fp16"):
        single, *sharded = (f"{prefix}{pattern}" for pattern in weight_patterns(stem, candidate))
        found = [single] if single in repository.files else _matching(repository, sharded)
        if any(name.endswith(".safetensors") for name in found):
            if (
                candidate == "fp16"
                and variant is None
                and {f"{prefix}{name}" for name in plain_pickles(stem)} & set(repository.files)
            ):
                warn_of_half(f"{repository.hub_id}, {part}/")
            return config + found
    raise _no_weights(repository, prefix, stem, variant)


def text_encoder_files(repository: Repository, variant: str | None = None) -> list[str]:
    """Names of the files of the text encoder and its tokenizer; empty if the repository has none that can be loaded."""
    for candidate in dict.fromkeys((variant, None)):
        try:
            weights = part_files(repository, "text_encoder", stem=TEXT_ENCODER_STEM, variant=candidate)
        except CheckpointError:
            continue
        return _matching(repository, ("tokenizer/*.json", "tokenizer/*.txt")) + weights
    return []


def fetch_checkpoint(repository: Repository, *, variant: str | None) -> Path:
    """The folder of a checkpoint, with only those files downloaded that a prediction needs.

    The text encoder (1.4 GB) is not needed if the user's cache holds the embedding of the empty prompt, which is found
    by the U-Net's weights.

    Args:
        repository: as `open_checkpoint` returns it.
        variant: "fp16" for the files named fp16; None for the plain ones.

    Raises:
        CheckpointError: the variant is not published, the weights are pickles only, or a file cannot be downloaded.
    """
    names = network_files(repository, variant)
    if _needs_text_encoder(repository, variant) and is_any_embedding_cached():
        fetch(repository, names, what="networks")
        if not cached_embedding_path(repository.folder, variant=variant).is_file():
            fetch(repository, _embedding_files(repository, variant), what="text encoder")
    else:
        fetch(repository, names + _embedding_files(repository, variant))
    keep_revision(repository)
    return repository.folder


def fetch_network(hub_id: str, *, local_files_only: bool = False) -> Path:
    """The folder of a repository that holds one network, such as a small autoencoder.

    Raises:
        CheckpointError: its weights are missing or of a kind that is not loaded, or it cannot be downloaded.
    """
    repository = find_repository(hub_id, local_files_only=local_files_only, landmark="config.json")
    fetch(repository, [name for name in part_files(repository, "") if name in repository.files])
    keep_revision(repository)
    return repository.folder


def fetch_base(hub_id: str, *, variant: str | None, revision: str | None) -> Path:
    """The folder of a checkpoint that training starts from: any diffusion model in diffusers layout.

    Raises:
        CheckpointError: the variant is not published, the weights are pickles only, or a file cannot be downloaded.
    """
    repository = find_repository(hub_id, revision=revision)
    names = _matching(repository, _SMALL_FILES) + network_files(repository, variant)
    names += _embedding_files(repository, variant)
    fetch(repository, _matching(repository, _NOT_REQUIRED) if repository.offline is None else ())
    fetch(repository, names)
    keep_revision(repository)
    return repository.folder


def needed_files(repository: Repository, variant: str | None) -> list[str]:
    """Names of all files of a checkpoint that a first prediction reads.

    Raises:
        CheckpointError: as `network_files`.
    """
    names = _matching(repository, _SMALL_FILES) + network_files(repository, variant)
    names += _embedding_files(repository, variant, required=False)
    return sorted(dict.fromkeys(names))


def _needs_text_encoder(repository: Repository, variant: str | None) -> bool:
    """Whether the text encoder must make the empty-prompt embedding: no file and no converted network holds it."""
    made = repository.path(embedding_file(variant)).is_file()  # by an earlier run; each variant has its own
    return not (made or EMBEDDING_FILE in repository.files or _is_converted(repository))


def _embedding_files(repository: Repository, variant: str | None, *, required: bool = True) -> list[str]:
    """Names of the files for the embedding of the empty prompt: its file, or text encoder and tokenizer, or none.

    Raises:
        CheckpointError: the text encoder is `required` and cannot be downloaded.
    """
    if not _needs_text_encoder(repository, variant):
        return [EMBEDDING_FILE] if EMBEDDING_FILE in repository.files else []
    names = text_encoder_files(repository, variant)
    if required and not names:  # this raises an error that states why
        part_files(repository, "text_encoder", stem=TEXT_ENCODER_STEM)
    return names


def _is_converted(repository: Repository) -> bool:
    networks = networks_of(image_encoder=_has_image_encoder(repository))
    return any(files[name] in repository.files for files in NETWORK_FILES.values() for name in networks)


def _has_image_encoder(repository: Repository) -> bool:
    """Whether the index names an image encoder. A base of training has none, and may lack the index."""
    index = repository.path(_INDEX)
    return index.is_file() and has_image_encoder(read_json(index), index)


def _matching(repository: Repository, patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in repository.files if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _no_weights(repository: Repository, prefix: str, stem: str, variant: str | None) -> CheckpointError:
    """The error for a part without usable weights: another variant, a pickle, or nothing."""
    where = f"{repository.hub_id}{f' ({prefix})' if prefix else ''}"
    here = [name.removeprefix(prefix) for name in repository.files if name.startswith(prefix)]
    published = sorted({_variant_of(name, stem) for name in here if name.endswith(".safetensors")})
    pickles = sorted(name for name in here if name.endswith(PICKLE_SUFFIXES))
    if repository.offline is not None:
        return repository.not_downloaded(f"{prefix}{stem}{f'.{variant}' if variant else ''}.safetensors")
    if variant and published:
        others = " and ".join("the plain weights" if name == "" else name for name in published)
        advice = "leave --variant out" if "" in published else f"choose --variant {published[0]}"
        return CheckpointError(f"{where} is not published in variant {variant!r}, only as {others}; {advice}")
    if published:
        return CheckpointError(f"{where} is published only as {', '.join(published)}; choose with --variant")
    if pickles:
        known = KNOWN.get(repository.hub_id)
        instead = (
            f"use {known.same_weights}, which has the same weights"
            if known is not None and known.same_weights
            else f"download it and convert each in its folder: {conversion_command(pickles[0])}"
        )
        return CheckpointError(
            f"{where} has its weights only as a pickle ({pickles[0]}), which may run code, so it is never loaded; "
            f"{instead}"
        )
    return CheckpointError(f"{where} has no weights; a checkpoint in diffusers layout holds them in unet/ and vae/")


def _variant_of(name: str, stem: str) -> str:
    """The variant in a weight file's name, empty for plain ones: of `model.fp16-00001-of-00002.safetensors`, fp16."""
    middle = name.removeprefix(stem).removesuffix(".safetensors")
    return middle.removeprefix(".").partition("-")[0] if middle.startswith(".") else ""
