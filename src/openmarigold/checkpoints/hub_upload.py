# SPDX-License-Identifier: Apache-2.0
"""Uploads a checkpoint folder to the Hugging Face hub. Only `openmarigold checkpoint push` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openmarigold.checkpoints.hub import as_hub_id
from openmarigold.checkpoints.hub_download import explained
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError, needs_extra
from openmarigold.files import some_home
from openmarigold.printing import quoted_logger

CARD = "README.md"
_log = quoted_logger(__name__)


def push(folder: Path, hub_id: str, *, public: bool = False, revision: str | None = None, message: str = "") -> str:
    """Uploads a folder as one commit, and returns the address of the commit; a missing repository is created.

    Args:
        folder: a checkpoint with its model card, README.md.
        hub_id: owner/name.
        public: whether a new repository is visible to everybody; an existing one stays as it is.
        revision: branch; it must exist, unless it is the main one.
        message: message of the commit.

    Raises:
        CheckpointError: the folder is not a checkpoint, or has no model card.
        InvalidValueError: not owner/name.
        MissingExtraError: huggingface_hub is not installed.
        OutputError: the hub refuses the upload.
    """
    if as_hub_id(Path(hub_id)) != hub_id:
        raise InvalidValueError(f"{hub_id} is not a name on the hub; give owner/name, and not a folder that is here")
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} holds no model_index.json; give a checkpoint folder, such as RUN/checkpoint")
    if not (folder / CARD).is_file():
        raise CheckpointError(
            f"{folder} has no model card ({CARD}); `openmarigold train` writes one, or write what the model is and "
            "what it was trained on"
        )
    with needs_extra("torch"), some_home():
        import huggingface_hub as library
    endpoint = library.constants.ENDPOINT
    api: Any = library.HfApi(endpoint=endpoint)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _log.warning("uploading %s (%.1f MB) to %s/%s", folder, size / 1e6, endpoint, hub_id)
    try:
        api.create_repo(hub_id, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub_id,
            folder_path=str(folder),
            revision=revision,
            commit_message=message or f"Checkpoint {folder.resolve().name}, uploaded with openmarigold",
        )
    except Exception as error:  # of many kinds, which have changed between releases
        cache = str(library.constants.HF_HUB_CACHE)
        reason = explained(error, hub_id, endpoint=endpoint, cache=cache, revision=revision)
        raise OutputError(
            f"{hub_id} cannot be uploaded: {reason}; a token with write access is needed (`hf auth login`, or HF_TOKEN)"
        ) from error
    return str(commit.commit_url)
