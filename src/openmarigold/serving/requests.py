# SPDX-License-Identifier: Apache-2.0
"""What a request may state, and how it becomes the settings of a prediction."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from openmarigold.config import CallConfig, FileFormat, OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError, one_line
from openmarigold.images.kinds import image_suffixes
from openmarigold.serving.settings import ServeConfig

# Settings that name files of the server, or that choose how it runs.
_NOT_OFFERED = frozenset({"camera_file", "normals_checkpoint", "batch_size", "format"})
_DEFAULT_RESOLUTION = 0
"""The processing_resolution that means the photo's own size."""


def offered(settings_type: type, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass of settings, for pydantic; None keeps the default."""
    hints = get_type_hints(settings_type)
    return {
        setting.name: (hints[setting.name] | None, Field(default=None))
        for setting in fields(settings_type)
        if setting.name not in _NOT_OFFERED and setting.name not in without
    }


_CALL, _OUTPUT = offered(CallConfig), offered(OutputConfig)

Settings: type[BaseModel] = create_model(
    "Settings",
    __config__=ConfigDict(extra="forbid"),
    __doc__="The settings of `openmarigold predict` that a request may give, by the same names.",
    modality=(
        str | None,
        Field(default=None, description="depth, normals, appearance, lighting; one that the server offers."),
    ),
    file=(
        str | None,
        Field(
            default=None,
            description="Of several files of the format, which: the end of its name, such as depth_colored.png.",
        ),
    ),
    **_CALL,
    **_OUTPUT,
)
"""Settings of a request, checked by pydantic; `CallConfig` and `OutputConfig` check the values."""


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """A photo and what is to be made of it."""

    photo: bytes
    """The bytes of its file."""
    modality: str | None
    """None: the model's own."""
    call: Mapping[str, Any]
    """Settings of `CallConfig`."""
    output: OutputConfig
    file: str | None = None
    """The end of the name of the file that is wanted."""
    suffix: str = ""
    """Suffix of the photo's file, one that pictures have; empty where it is not known."""

    def config(self, base: PredictConfig) -> PredictConfig:
        """The settings of the server's model with those of the request."""
        return replace(base, **self.call)


def part(stated: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of the stated settings that have one of the names."""
    return {name: stated[name] for name in names if name in stated}


def validated(model: type[BaseModel], given: Mapping[str, Any], *, is_json: bool = False) -> dict[str, Any]:
    """The settings that are stated; those of JSON have to be of the right types, others are texts.

    Raises:
        InvalidValueError: a name or value that is not accepted.
    """
    stated = {name: value for name, value in given.items() if value != ""}
    try:
        found = model.model_validate_json(json.dumps(stated), strict=True) if is_json else model.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        known = "" if first["type"] != "extra_forbidden" else f"; known are {', '.join(model.model_fields)}"
        raise InvalidValueError(f"{name:.80}: {one_line(first['msg'].lower())}{known}") from None
    return found.model_dump(exclude_none=True)


def check_limits(call: CallConfig, limits: ServeConfig) -> None:
    """Raises InvalidValueError for a request above the server's limits."""
    _check_passes((call.num_inference_steps or 1) * call.ensemble_size, limits)
    resolution = call.processing_resolution
    if resolution is not None and (resolution > limits.max_resolution or resolution == _DEFAULT_RESOLUTION):
        raise InvalidValueError(
            f"processing_resolution={resolution} is more than this server takes; give {limits.max_resolution} at most"
        )


def check_resolved(call: Mapping[str, Any], resolved: Mapping[str, Any], limits: ServeConfig) -> None:
    """Raises InvalidValueError for more passes than the server offers, with what it and its model add to `call`."""
    if call.keys() & {"num_inference_steps", "ensemble_size"}:  # else the server's own choice
        _check_passes((resolved["num_inference_steps"] or 1) * resolved["ensemble_size"], limits)


def _check_passes(passes: int, limits: ServeConfig) -> None:
    if passes > limits.max_passes:
        raise InvalidValueError(
            f"num_inference_steps times ensemble_size is {passes}; this server takes {limits.max_passes} at most"
        )


def make_request(
    photo: bytes,
    given: Mapping[str, Any],
    formats: tuple[FileFormat, ...],
    limits: ServeConfig,
    name: str = "",
    *,
    is_json: bool = False,
) -> PredictRequest:
    """A request of one photo, whose file is called `name`; `is_json` as in `validated`.

    Raises:
        InvalidValueError: a name or value that is not accepted, or more than the server offers.
    """
    stated = validated(Settings, given, is_json=is_json)
    call = part(stated, _CALL)
    check_limits(CallConfig(**call), limits)
    suffix = PurePosixPath(name).suffix.lower()
    return PredictRequest(
        photo=photo,
        modality=stated.get("modality"),
        call=call,
        output=OutputConfig(format=formats, **part(stated, _OUTPUT)),
        file=stated.get("file"),
        suffix=suffix if suffix in image_suffixes() else "",
    )


def photo_of_json(body: Mapping[str, Any]) -> bytes:
    """The photo in a JSON body, in base64.

    Raises:
        InvalidValueError: it is missing or no base64.
    """
    text = body.get("photo")
    if not isinstance(text, str) or not text:
        raise InvalidValueError("photo is missing; give the bytes of a picture's file in base64")
    content = text.partition("base64,")[2] if text.startswith("data:") else text
    try:
        stored = content.encode("ascii").translate(None, b" \t\r\n")  # `base64` breaks lines
        return base64.b64decode(stored, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValueError("photo is not base64; give the bytes of a picture's file in base64") from None
