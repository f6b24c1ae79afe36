# SPDX-License-Identifier: Apache-2.0
"""The client of `openmarigold serve`: predictions from another process or machine, without a model here."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.config import CallConfig, FileFormat, OutputConfig
from openmarigold.errors import ImageError, InvalidValueError, ServerError
from openmarigold.files import as_path
from openmarigold.images.photo import as_rgb, read_head
from openmarigold.modalities import find_modality
from openmarigold.results.prediction import Prediction
from openmarigold.serving.connection import Connection, as_fields, client_token, form
from openmarigold.serving.formats import RECORD_FILE, STEM
from openmarigold.text_files import DamagedTextError, parse_json

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_HERE_ONLY = {
    "camera_file": "give fov or focal_px",
    "normals_checkpoint": "the server has its own",
    "batch_size": "the server chooses it",
}


@dataclass(frozen=True, kw_only=True)
class Received:
    """The answer for one photo."""

    files: dict[str, bytes]
    """By the end of their names, such as _depth.npy; the bytes that `openmarigold predict` writes."""
    about: dict[str, Any]
    """The server's description: modality, space, maps, record, settings, camera, notes, seconds."""

    @property
    def record(self) -> dict[str, Any]:
        """The provenance that the files carry."""
        return self.about["record"]


class Client:
    """Predicts photos on a server; threads may share it.

    >>> from openmarigold import Client
    >>> Client("http://localhost:8765").predict("cat.jpg").depth  # doctest: +SKIP

    Args:
        url: of the server.
        token: the server's token; None takes the variable OPENMARIGOLD_TOKEN, where it is set.
        patience: longest wait for a busy server, for one photo [s].

    Raises:
        InvalidValueError: a URL or token that is not accepted.
    """

    def __init__(self, url: str, token: str | None = None, *, patience: float = 600.0) -> None:
        self.connection = Connection(url, client_token(token), patience=patience)

    def models(self) -> dict[str, Any]:
        """What the server offers: `version`, `modalities` by name, `media_types`.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        return self.connection.get("/v1/models").json()

    def facts(
        self, modality: str | None = None, call: CallConfig | None = None, output: OutputConfig | None = None
    ) -> dict[str, Any]:
        """The answer that photos would get: `modality`, `files` (ends of names), `request` (settings in effect).

        Raises:
            InvalidValueError: a setting that the server does not accept.
            ServerError: the server cannot be reached, or refuses.
        """
        if modality is None:
            self.connection.get("/readyz")  # waits while it loads
            offered = self.models().get("modalities")
            if not isinstance(offered, dict) or not offered:
                raise ServerError(f"{self.connection.url} is not an `openmarigold serve`; check the URL")
            modality = str(next(iter(offered)))
        found = self.connection.get(f"/v1/models/{_word(modality)}", _sent(call, output)).json()
        if not isinstance(found.get("request"), dict) or not isinstance(found.get("files"), list):
            raise ServerError(f"{self.connection.url} is not an `openmarigold serve` of this version; check the URL")
        return found

    def predict(self, photo: Any, *, modality: str | None = None, **settings: Any) -> Prediction:
        """The prediction of one photo, as `Predictor` gives it, but without `latent`.

        Args:
            photo: a path, the bytes of a picture's file, an open file, a Pillow image, or an array that `Predictor`
                takes.
            modality: what to predict; None: the first one that the server offers.
            settings: of `CallConfig`, such as ensemble_size=10.

        Raises:
            ImageError: the photo cannot be read.
            InvalidValueError: a setting that is not accepted, here or by the server.
            ServerError: the server cannot be reached, or refuses.
        """
        call = _call_of(settings)
        content, suffix = content_of(photo)
        got = self.ask(content, suffix, modality=modality, call=call, output=OutputConfig(format=("npz",)))
        maps = _maps_of(got)
        predicted = find_modality(got.about["modality"], got.about.get("space"))
        own = [kind.name for kind in predicted.maps]
        camera = got.about.get("camera")
        try:
            rgb = as_rgb(content, background=call.background)
        except ImageError:  # the server has a decoder that is not installed here
            rgb = None
        return Prediction(
            maps={name: maps[name] for name in own if name in maps},
            uncertainties={name: maps[name] for name in predicted.uncertainties if name in maps},
            bounds={name: values for name, values in maps.items() if name not in (*own, *predicted.uncertainties)},
            settings=got.about["settings"],
            modality=got.about["modality"],
            space=got.about.get("space"),
            camera=None if camera is None else Camera.from_dict(camera),
            rgb=rgb,
        )

    def files(
        self,
        photo: Any,
        *,
        modality: str | None = None,
        format: tuple[FileFormat, ...] = ("npy", "png"),
        **settings: Any,
    ) -> dict[str, bytes]:
        """The files that `openmarigold predict` writes for a photo, by the end of their names, such as _depth.npy.

        `settings` are those of `CallConfig` and `OutputConfig`. Raises what `predict` raises.
        """
        known = {setting.name for setting in fields(OutputConfig)}
        output = OutputConfig(format=format, **{name: value for name, value in settings.items() if name in known})
        call = _call_of({name: value for name, value in settings.items() if name not in known})
        content, suffix = content_of(photo)
        return self.ask(content, suffix, modality=modality, call=call, output=output).files

    def ask(
        self, content: bytes, suffix: str, *, modality: str | None, call: CallConfig, output: OutputConfig
    ) -> Received:
        """The answer for the bytes of a photo's file, whose name ends in `suffix`. Raises what `predict` raises."""
        sent = {**_sent(call, output), "record": "true", **({} if modality is None else {"modality": modality})}
        body, content_type = form(sent, content, f"{STEM}{suffix if _SUFFIX.fullmatch(suffix) else ''}")
        headers = {"content-type": content_type, "accept": "application/zip"}
        reply = self.connection.request("POST", "/v1/predict", body, headers)
        try:
            with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
            about = parse_json(files.pop(RECORD_FILE))
            if not isinstance(about, dict) or not all(isinstance(about.get(name), dict) for name in _NEEDED):
                raise KeyError(RECORD_FILE)
        except (zipfile.BadZipFile, KeyError, DamagedTextError) as error:
            raise ServerError(
                f"{self.connection.url} answered with something else than `openmarigold serve` of this version does; "
                "check the URL"
            ) from error
        return Received(files={name.removeprefix(STEM): data for name, data in files.items()}, about=about)

    def close(self) -> None:
        """Ends all requests, including running ones."""
        self.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_NEEDED = ("record", "settings", "maps")


def check_sendable(call: CallConfig) -> None:
    """Raises InvalidValueError for settings that name files of this machine, or that choose how a model runs."""
    for name, advice in _HERE_ONLY.items():
        if getattr(call, name) is not None:
            raise InvalidValueError(f"{name} has no effect on a server; leave it out: {advice}")


def content_of(photo: Any) -> tuple[bytes, str]:
    """The bytes of a photo's file, and the suffix of its name; other pictures than files become PNG.

    Raises:
        ImageError: it cannot be read.
        InvalidValueError: a kind that is not accepted.
    """
    if isinstance(photo, (str, os.PathLike)):
        path = as_path(photo, "the photo")
        read_head(path)  # raises an error that names the problem
        try:
            return path.read_bytes(), path.suffix
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    if callable(getattr(photo, "read", None)) and not isinstance(photo, Image.Image):
        photo = photo.read()
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return bytes(photo), ""
    buffer = io.BytesIO()
    Image.fromarray(as_rgb(photo)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), ".png"


def _call_of(settings: Mapping[str, Any]) -> CallConfig:
    known = [setting.name for setting in fields(CallConfig)]
    if unknown := [name for name in settings if name not in known]:
        raise InvalidValueError(f"{unknown[0]} is not a setting; known are {', '.join(known)}")
    return CallConfig(**settings)


def _sent(call: CallConfig | None, output: OutputConfig | None) -> dict[str, str]:
    """All settings as fields, including defaults, so that they replace the server's own settings; None leaves these."""
    if call is not None:
        check_sendable(call)
    return as_fields({**asdict(call or CallConfig()), **asdict(output or OutputConfig())})


def _maps_of(got: Received) -> dict[str, np.ndarray]:
    name = next((name for name in got.files if name.endswith(".npz")), "")
    try:
        with np.load(io.BytesIO(got.files[name]), allow_pickle=False) as entries:
            return {key: entries[key] for key in entries.files if key in got.about["maps"]}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ServerError("the server's answer holds no maps; check its version") from error


def _word(modality: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", modality):
        raise InvalidValueError(f"modality={modality!r:.80} is not known; use a name such as depth")
    return modality
