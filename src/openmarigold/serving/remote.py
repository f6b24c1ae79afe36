# SPDX-License-Identifier: Apache-2.0
"""`openmarigold predict --server`: photos of this machine, predicted on a server, with the files and the manifest here.

Resuming, names, order and errors are those of `predict_files`. The server's bytes are written unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from openmarigold.config import ModelConfig, OutputConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError, ServerError
from openmarigold.files import as_path
from openmarigold.images.pixels import parse_color
from openmarigold.images.quiet import quiet
from openmarigold.predictor.maker import Maker, PhotoReader
from openmarigold.predictor.run import MAX_PIXELS_ASIDE, BatchResult, Event, make_results
from openmarigold.results.inputs import check_output_dir, listed
from openmarigold.results.manifest import file_size
from openmarigold.results.writers import Writer, write_results
from openmarigold.serving.client import Client, Received, check_sendable, content_of
from openmarigold.serving.formats import UPLOAD

_AT_ONCE = 4  # requests under way


def predict_on_server(
    inputs: Iterable[Path | str] | Path | str,
    *,
    server: str,
    token: str | None = None,
    output_dir: Path | str,
    config: PredictConfig | None = None,
    output: OutputConfig | None = None,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
) -> BatchResult:
    """`predict_files` on a server: the same files and manifest, without a model here.

    Args:
        inputs: photos, and folders of photos.
        server: its URL.
        token: the server's token; None takes the variable OPENMARIGOLD_TOKEN, where it is set.
        output_dir: made where it is missing.
        config: the modality, and settings of the call; the model is the server's.
        output: which files are written.
        overwrite: make again what is done, and replace results of other photos.
        report: called with the progress.

    Raises:
        InvalidValueError: a setting that is not accepted, here or by the server; one of the model.
        OutputError: the output folder or its manifest cannot be written.
        ServerError: the server cannot be reached, or refuses; what is finished is kept.
    """
    config, output = config or PredictConfig(), output or OutputConfig()
    check_is_remote(config)
    paths, target = listed(inputs), as_path(output_dir, "output_dir")
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="request")
    with Client(server, token) as client:
        makers = [RemoteRun(client, name, config, output, target) for name in dict.fromkeys(config.modality or (None,))]
        check_output_dir(target, paths)
        parse_color(config.background)
        for maker in makers:
            maker.check()
        try:
            return make_results(
                paths,
                output_dir=target,
                makers=makers,
                read=_sender(pool),
                ahead=_AT_ONCE - 1,
                overwrite=overwrite,
                report=report,
            )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_is_remote(config: PredictConfig) -> None:
    """Raises InvalidValueError for settings that choose the model, which the server has chosen."""
    for setting in fields(ModelConfig):
        if setting.name != "modality" and getattr(config, setting.name) != setting.default:
            flag = f"--{setting.name.replace('_', '-')}"
            raise InvalidValueError(
                f"{flag} chooses the model, which a server has chosen already; leave it out, or give it to "
                "`openmarigold serve`"
            )
    check_sendable(config)


_Sent: TypeAlias = Mapping[int, Future[Received]]
"""The answers for a photo on its way, by the place of the maker in memory."""


class RemoteRun(Maker):
    """One modality of a server."""

    def __init__(
        self, client: Client, modality: str | None, config: PredictConfig, output: OutputConfig, output_dir: Path
    ) -> None:
        super().__init__(output_dir)
        self._client, self._asked = client, modality
        self._call, self._output = config.call, output
        self._engine: str | None = None

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return self._client.facts(self._asked, self._call, self._output)

    @property
    def modality_name(self) -> str:
        """What the files hold."""
        return str(self._facts["modality"])

    @property
    def request(self) -> dict[str, Any]:
        """Every setting that shapes the results, as the server states them."""
        return self._facts["request"]

    @property
    def engine(self) -> str | None:
        """What runs the networks; None until a photo needs them."""
        return self._engine

    def check(self) -> None:
        """Asks the server whether it accepts the settings."""
        _ = self._facts

    def paths(self, result: str) -> list[Path]:
        """The files of a result (its path in the output folder, without suffixes)."""
        path = self.output_dir / result
        return [path.with_name(f"{path.name}{suffix}") for suffix in self._suffixes]

    @cached_property
    def _suffixes(self) -> list[str]:
        found = [str(name) for name in self._facts["files"]]
        if not found or not all(name.startswith("_") and not set(name) & {"/", "\\", "\0"} for name in found):
            raise ServerError(f"{self._client.connection.url} states names of files that are not those of results")
        return found

    def prepare(self, makers: Sequence[Maker]) -> None:
        """Nothing: the server has its model."""

    def send(self, content: bytes, suffix: str) -> Received:
        """The server's answer for a photo."""
        return self._client.ask(content, suffix, modality=self.modality_name, call=self._call, output=self._output)

    def predict(self, photo: _Sent, path: Path, result: str) -> tuple[Received, list[str]]:
        """The answer for a photo, and its notes with the photo's name."""
        try:
            got = photo[id(self)].result()
        except (ImageError, InvalidValueError) as error:
            raise type(error)(_named(str(error), path)) from error
        if got.record.get("checkpoint_sha256") != self.request.get("checkpoint_sha256"):
            raise ServerError(f"{self._client.connection.url} has another model now than at the start; run this again")
        self._engine = str(got.record.get("engine", "")) or None
        return got, [_named(str(note), path) for note in got.about.get("notes", ())]

    def write(
        self,
        prediction: Received,
        result: str,
        photo: Path,
        paths: Sequence[Path],
        input_sha256: str | None,
        request: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, int | None], bool]:
        """Writes the files as they came: see `Maker.write`."""
        stem = Path(result).name
        if missing := [path for path in paths if path.name.removeprefix(stem) not in prediction.files]:
            raise ImageError(f"{photo}: the server's answer lacks {missing[0].name}")
        kept = self.files.make_room(result, photo, paths, input_sha256, request=request)
        of_suffix: dict[str, Writer] = {
            end: lambda file, content=content: file.write_bytes(content) for end, content in prediction.files.items()
        }
        write_results(paths, stem, of_suffix, self.files.leftovers)
        sizes = {**(kept or {}), **{path.name: file_size(path) for path in paths}}
        return prediction.record, sizes, kept is None


def _sender(pool: ThreadPoolExecutor) -> PhotoReader:
    """Reads photos and sends them; very large ones alone, so that memory holds one answer."""

    def read(path: Path, makers: Sequence[Maker], note: Callable[[str], object]) -> tuple[Any, int]:
        content, suffix = content_of(path)
        remotes = [maker for maker in makers if isinstance(maker, RemoteRun)]
        sent: _Sent = {id(maker): pool.submit(maker.send, content, suffix) for maker in remotes}
        pixels = _pixels_of(path)
        if pixels > MAX_PIXELS_ASIDE:
            for answer in sent.values():
                answer.exception()
        return sent, pixels

    return read


def _pixels_of(path: Path) -> int:
    """The number of pixels that a file states; 0 where Pillow does not know it."""
    try:
        with quiet(), Image.open(path) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - the server tells what is wrong with it
        return 0


def _named(text: str, path: Path) -> str:
    """A message of the server with the photo's own name."""
    return f"{path}{text.removeprefix(UPLOAD)}" if text.startswith(UPLOAD) else text
