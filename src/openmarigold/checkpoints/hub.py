# SPDX-License-Identifier: Apache-2.0
"""Repositories of the Hugging Face hub: list the files of one, and fetch the needed files into the hub's own cache.

huggingface_hub comes with the extra `torch` and is imported when a hub id is used. Its settings apply: `HF_HOME` (where
downloads are kept), `HF_HUB_OFFLINE`, `HF_ENDPOINT` (a mirror), `HF_TOKEN`. The cache has the layout that diffusers and
others read and write, so that one download serves all.

Small files are fetched by huggingface_hub, large ones by `hub_download`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.hub_download import (
    explained,
    fetch_blob,
    git_hash_of,
    in_units,
    is_absent,
    not_downloaded,
    partial_path,
    size_of,
)
from openmarigold.errors import CheckpointError, needs_extra
from openmarigold.files import file_sha256, some_home, write_atomically
from openmarigold.printing import quoted_logger

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PAGE = re.compile(r"(?:https?:/+)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)(?:/tree/main)?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULT_REVISION = "main"
_LARGE_BYTES = 1 << 20  # larger files are announced, and their downloads are resumed
_TIMEOUT_S = 10.0
_SPARE_BYTES = 1 << 26  # disk space that stays free after the download

_log = quoted_logger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    size: int
    sha256: str | None
    """None for small files: the cache names them by another hash."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at one commit, which all files of a run come from."""

    hub_id: str
    commit: str
    revision: str
    """The requested branch, tag or commit."""
    folder: Path
    """Where its files are, or will be."""
    files: Mapping[str, HubFile] = field(repr=False)
    """All files that the hub lists; without the network, the files that were downloaded before."""
    offline: str | None = None
    """Reason why the network is not used; None if it is used."""

    def path(self, name: str) -> Path:
        """Where a file is, or will be."""
        return self.folder / name

    def missing(self, names: Iterable[str]) -> dict[str, HubFile]:
        """Those of the files that are not here yet."""
        return {name: self.files[name] for name in names if not self.path(name).is_file()}

    def not_downloaded(self, missing: str) -> CheckpointError:
        """The error about files that are not here and cannot be downloaded now."""
        return not_downloaded(self.hub_id, offline=self.offline or "offline", missing=missing)


def as_hub_id(checkpoint: Path) -> str | None:
    """The hub id that a checkpoint argument means; None if it is (or can only be) a folder.

    >>> as_hub_id(Path("prs-eth/marigold-depth-v1-1"))
    'prs-eth/marigold-depth-v1-1'
    >>> as_hub_id(Path("https://huggingface.co/prs-eth/marigold-depth-v1-1"))
    'prs-eth/marigold-depth-v1-1'
    >>> as_hub_id(Path("./checkpoints/mine/unet")) is None
    True
    """
    text = checkpoint.as_posix()
    page = _HUB_PAGE.fullmatch(text)
    text = page.group(1) if page else text
    return text if _HUB_ID.fullmatch(text) and not checkpoint.exists() else None


def id_of_cached(folder: Path) -> str | None:
    """The hub id of a folder within the hub's cache (models--OWNER--NAME/snapshots/COMMIT); None for other folders."""
    path = folder.resolve()
    kind, *words = path.parent.parent.name.split("--")
    return "/".join(words) if path.parent.name == "snapshots" and kind == "models" and len(words) == 2 else None


def find_repository(
    hub_id: str, *, revision: str | None = None, local_files_only: bool = False, landmark: str = "model_index.json"
) -> Repository:
    """A repository of the hub with the list of its files; nothing is downloaded.

    If the hub cannot be reached, an earlier download is used; the file `landmark` shows where it is.

    Raises:
        CheckpointError: the repository or revision is not available, or (offline) was not downloaded before.
        MissingExtraError: huggingface_hub is not installed.
    """
    library = _library()
    offline = "HF_HUB_OFFLINE is set" if library.constants.HF_HUB_OFFLINE else None
    offline = "local_files_only" if local_files_only else offline
    revision = revision or _DEFAULT_REVISION
    if offline is None:
        try:
            return _listed(library, hub_id, revision)
        except Exception as error:  # the HTTP library underneath has changed between releases, and its errors with it
            reason = _explained(library, error, hub_id, revision)
            kept = None if is_absent(error) else _kept(library, hub_id, revision, landmark, offline=str(reason))
            if kept is None:
                raise reason from error
            _log.warning("%s; the earlier download is used", reason)
            return kept
    kept = _kept(library, hub_id, revision, landmark, offline=offline)
    if kept is None:
        raise not_downloaded(hub_id, offline=offline)
    return kept


def fetch(repository: Repository, names: Iterable[str], *, what: str = "") -> None:
    """Download those files of a repository that are not in its folder yet, and announce large ones.

    Raises:
        CheckpointError: a file cannot be downloaded.
    """
    missing = repository.missing(names)
    if not missing:
        return
    if repository.offline is not None:
        raise repository.not_downloaded(next(iter(missing)))
    library = _library()
    try:
        for name, file in missing.items():
            _take_from_another_repository(library, repository, name, file)
        large = {name: file for name, file in missing.items() if _is_to_fetch(repository, file)}
        _announce(library, repository, large, what)
        _check_room(library, repository, large)
        for name, file in missing.items():
            if name in large:
                _fetch_large(library, repository, name, file)
            # This fetches small files, and makes the cache's links for all files.
            with _without_bars(library):
                library.hf_hub_download(repository.hub_id, name, revision=repository.commit)
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise _explained(library, error, repository.hub_id, repository.revision) from error


def keep_revision(repository: Repository) -> None:
    """Record the commit of the revision, for runs without the network. Call it when all files are there."""
    path = repository.folder.parents[1] / "refs" / repository.revision
    if repository.offline is not None or repository.revision == repository.commit:
        return
    with contextlib.suppress(OSError):  # whoever filled a read-only cache has recorded it already
        if not path.is_file() or path.read_text(encoding="utf-8") != repository.commit:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: temporary.write_text(repository.commit, encoding="utf-8"))


def remove_damaged(repository: Repository) -> list[str]:
    """Remove files whose bytes differ from the hub's hash, so that they are fetched again; return their names.

    Raises:
        CheckpointError: one cannot be removed.
    """
    removed = []
    for name, file in repository.files.items():
        path = repository.path(name)
        if path.is_file() and _is_damaged(path, file):
            try:
                # The cache's link, the file that it points to, and the shared file behind that one, if there is one.
                for damaged in (path, *_links(path)):
                    damaged.unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename} is damaged and cannot be removed ({error.strerror}); check its permissions"
                ) from error
            removed.append(name)
    return removed


def _is_damaged(path: Path, file: HubFile) -> bool:
    stated = stated_sha256(path) or file.sha256
    if stated is not None:
        return file_sha256(path) != stated
    name = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    return _COMMIT.fullmatch(name) is not None and git_hash_of(path) != name


def _links(path: Path) -> list[Path]:
    """The files that a path links to, one after the other."""
    links = []
    while path.is_symlink():
        path = path.parent / os.readlink(path)
        links.append(path)
    return links


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 in the name of a file of the hub's cache; None for small files and outside the cache.

    In that cache a file is a link to another one, whose name is its hash. That file may be a link itself, into a store
    that several repositories share, where names are hashes of another kind.
    """
    if not path.is_symlink():
        return None
    name = os.path.basename(os.readlink(path))
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _library() -> Any:
    with needs_extra("torch"), some_home():  # its cache would be a folder named ~
        import huggingface_hub
        from huggingface_hub import constants
    assert constants is huggingface_hub.constants
    return huggingface_hub


def _explained(library: Any, error: Exception, hub_id: str, revision: str) -> CheckpointError:
    constants = library.constants
    return explained(error, hub_id, endpoint=constants.ENDPOINT, cache=str(constants.HF_HUB_CACHE), revision=revision)


def _listed(library: Any, hub_id: str, revision: str) -> Repository:
    """The repository as the hub lists it: one request for the commit, one for the files."""
    api = library.HfApi(endpoint=library.constants.ENDPOINT)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        commit = api.model_info(hub_id, revision=revision, timeout=_TIMEOUT_S).sha
    entries = api.list_repo_tree(hub_id, revision=commit, recursive=True)
    files = {
        entry.path: HubFile(entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if hasattr(entry, "size")
    }
    folder = Path(library.constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}", "snapshots", commit)
    return Repository(hub_id=hub_id, commit=commit, revision=revision, folder=folder, files=files)


def _kept(library: Any, hub_id: str, revision: str, landmark: str, *, offline: str) -> Repository | None:
    """The repository from an earlier download by any program; None if there was none."""
    found = library.try_to_load_from_cache(hub_id, landmark, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found[: -len(landmark)])
    files = {
        path.relative_to(folder).as_posix(): HubFile(path.stat().st_size, stated_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Repository(hub_id=hub_id, commit=folder.name, revision=revision, folder=folder, files=files, offline=offline)


def _is_to_fetch(repository: Repository, file: HubFile) -> bool:
    return file.sha256 is not None and file.size >= _LARGE_BYTES and not _blob(repository, file).exists()


def _blob(repository: Repository, file: HubFile) -> Path:
    return repository.folder.parents[1] / "blobs" / str(file.sha256)


def _fetch_large(library: Any, repository: Repository, name: str, file: HubFile) -> None:
    blob = _blob(repository, file)
    fetch_blob(
        library,
        library.hf_hub_url(repository.hub_id, name, revision=repository.commit),
        blob,
        size=file.size,
        sha256=str(file.sha256),
        lock=Path(library.constants.HF_HUB_CACHE) / ".locks" / blob.parents[1].name / f"{file.sha256}.lock",
        title=f"{name} of {repository.hub_id}",
    )


def _take_from_another_repository(library: Any, repository: Repository, name: str, file: HubFile) -> None:
    """Links a large file that another repository of the cache has: one text encoder serves many checkpoints."""
    blob = _blob(repository, file)
    if file.sha256 is None or blob.exists():
        return
    for other in sorted(Path(library.constants.HF_HUB_CACHE).glob(f"models--*/blobs/{file.sha256}")):
        if not other.is_file() or other.stat().st_size != file.size or file_sha256(other) != file.sha256:
            continue
        blob.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a file system without hard links: it is downloaded
            os.link(other.resolve(), blob)
            _log.info("%s of %s is taken from %s", name, repository.hub_id, other.parents[1].name)
            return


def _announce(library: Any, repository: Repository, large: Mapping[str, HubFile], what: str) -> None:
    """Logs what is downloaded, how much, from where and to where; as a warning, so that it always shows."""
    if not large:
        return
    here = sum(size_of(partial_path(_blob(repository, file))) for file in large.values())
    resumed = f", {in_units(here)} of it here already" if here else ""
    _log.warning(
        "downloading %s%s: %s in %d file%s%s, from %s (revision %s, commit %s) to %s",
        repository.hub_id,
        f" ({what})" if what else "",
        in_units(sum(file.size for file in large.values())),
        len(large),
        "" if len(large) == 1 else "s",
        resumed,
        library.constants.ENDPOINT,
        repository.revision,
        repository.commit[:8],
        library.constants.HF_HUB_CACHE,
    )


def _check_room(library: Any, repository: Repository, large: Mapping[str, HubFile]) -> None:
    needed = sum(file.size - size_of(partial_path(_blob(repository, file))) for file in large.values())
    place = Path(library.constants.HF_HUB_CACHE)
    existing = next((path for path in (place, *place.parents) if path.exists()), None)
    if needed == 0 or existing is None:
        return
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_BYTES:
        raise CheckpointError(
            f"{repository.hub_id} needs {in_units(needed)}, and {place} has {in_units(free)} of free space; free some, "
            "or set HF_HOME to a folder with more"
        )


@contextlib.contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    """Keeps huggingface_hub from drawing bars for small files."""
    utils = library.utils
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
