# SPDX-License-Identifier: Apache-2.0
"""Your own RGB and depth: a folder (or tar, or zip) and a small TOML file that describes its layout."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32

from openmarigold.data.archives import Archive, first_named, open_archive
from openmarigold.data.arrays import UnexpectedArrayError, load_npy
from openmarigold.data.decoding import (
    FrameDefectError,
    damaged,
    decode_codes,
    decode_exr,
    decode_image,
    plane_depth,
    read_member,
)
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Listing, RawFrame, RawSample, damaged_archives
from openmarigold.data.shard_writer import Rejection
from openmarigold.errors import DataError, ImageError, InvalidValueError
from openmarigold.images.exr import require_exr
from openmarigold.images.pixels import exif_orientation, image_to_rgb
from openmarigold.text_files import DamagedTextError, from_table, parse_toml, with_current_keys

CONFIG_FILE = "dataset.toml"

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_MAX_KEY = 88
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_DEPTH_SUFFIXES = (".png", ".npy", ".exr")


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """The settings in the TOML file.

    Attributes:
        name: of the data set.
        rgb: pattern of the RGB files' paths below the source. `{field}` matches a part of a path without `/`, `{path}`
            also parts with `/`.
        depth: the depth file with the same fields; .png (16-bit), .npy or .exr.
        meters_per_unit: depth of a stored 1 [m]. Needed for .png; 1 for the others if not given.
        depth_is: "planar" depth, or "distance" along the ray, which needs the focal length.
        kind: what the pictures show; may have fields.
        scene: which pictures belong together; may have fields.
        fx, fy, cx, cy: intrinsics [px], pixel centers at +0.5; fy is fx, and cx, cy the middle, if not given.
        invalid: stored values that mean "no depth", in addition to 0, negative and non-finite ones.
        min_depth, max_depth: depth [m] that training may use, exclusive; other depth stays as it is.
        encoding: "auto" keeps the codes of planar .png and stores all else as float32; "log" stores 16-bit codes from
            `min_depth` to `max_depth`, and depth outside becomes "no depth".
        exr_channel: of .exr files; by default the only one, or Z, or Y.
        license, attribution: for the manifest.
    """

    name: str
    rgb: str
    depth: str
    meters_per_unit: float = 0.0
    depth_is: str = "planar"
    kind: str = "photo"
    scene: str = "all"
    fx: float = 0.0
    fy: float = 0.0
    cx: float = 0.0
    cy: float = 0.0
    invalid: tuple[float, ...] = ()
    min_depth: float = 1e-5
    max_depth: float = float("inf")
    encoding: str = "auto"
    exr_channel: str = ""
    license: str = ""
    attribution: str = ""

    def __post_init__(self) -> None:
        fields = set(_FIELD.findall(self.rgb))
        suffix = self.depth_suffix
        rules = (
            (bool(fields), f"rgb={self.rgb!r} has no field such as {{frame}}, so it names one file"),
            (suffix in _DEPTH_SUFFIXES, f"depth={self.depth!r} must end in one of {', '.join(_DEPTH_SUFFIXES)}"),
            (suffix != ".png" or self.meters_per_unit > 0, "meters_per_unit is needed for .png (0.001: millimeters)"),
            (self.meters_per_unit >= 0, f"meters_per_unit={self.meters_per_unit} must be above 0"),
            (self.depth_is in ("planar", "distance"), f"depth_is={self.depth_is!r} must be planar or distance"),
            (self.depth_is == "planar" or self.fx > 0, "fx is needed to make planar depth of distances"),
            (min(self.fx, self.fy, self.cx, self.cy) >= 0, "fx, fy, cx and cy must not be negative"),
            (0 < self.min_depth < self.max_depth, "min_depth must be above 0 and below max_depth"),
            (self.encoding in ("auto", "log", "float32"), f"encoding={self.encoding!r} must be auto, log or float32"),
            (self.encoding != "log" or np.isfinite(self.max_depth), "encoding = 'log' needs max_depth"),
        )
        for kept, message in rules:
            if not kept:
                raise DataError(f"{message}; correct the TOML file")
        for name in ("depth", "kind", "scene"):
            unknown = set(_FIELD.findall(getattr(self, name))) - fields
            if unknown:
                raise DataError(f"{name} has the field {sorted(unknown)[0]!r}, which rgb={self.rgb!r} does not have")

    @property
    def depth_suffix(self) -> str:
        """Suffix of the depth files."""
        return PurePosixPath(self.depth).suffix.lower()


def read_config(path: Path) -> FolderConfig:
    """The configuration in a TOML file.

    Raises:
        DataError: missing, no TOML, or with an unknown, missing or contradictory key.
    """
    try:
        table = with_current_keys(parse_toml(path.read_bytes()))
    except (OSError, DamagedTextError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it must be a TOML file, see docs/data.md, or give --config"
        ) from error
    return from_table(FolderConfig, table, where=str(path), error=DataError)


@dataclass(eq=False)
class FolderReader:
    """Frames of a folder that a `FolderConfig` describes.

    Attributes:
        source: a folder, tar or zip; `list_frames` reads it.
        config: its description.
        split: name of the split that the result becomes.
        listed: paths of the RGB files to take, one a line (text after a blank is ignored); None = all.

    Raises:
        MissingExtraError: .exr files without the extra `exr`.
    """

    source: Path
    config: FolderConfig
    _: KW_ONLY
    split: str = "train"
    listed: list[str] | None = None

    modality = "depth"

    def __post_init__(self) -> None:
        config = self.config
        if config.depth_suffix == ".exr":
            require_exr()
        self.name = config.name
        self.valid_range = (config.min_depth, config.max_depth)
        self.keeps_codes = (config.encoding, config.depth_suffix, config.depth_is) == ("auto", ".png", "planar")
        if self.keeps_codes:
            self.encoding = MapEncoding(kind="linear", meters_per_unit=config.meters_per_unit)
        elif config.encoding == "log":
            self.encoding = MapEncoding(kind="log", near=config.min_depth, far=config.max_depth, levels=65535)
        else:
            self.encoding = MapEncoding(kind="float32")
        self.encodings = {"depth": self.encoding}
        self._archive: Archive | None = None

    def settings(self) -> dict[str, Any]:
        found = dataclasses.asdict(self.config)
        return {name: value if value != float("inf") else None for name, value in found.items()}

    def list_frames(self) -> Listing:
        self._archive = archive = open_archive(self.source)
        pattern = _pattern(self.config.rgb)
        if self.listed is None:
            names = sorted(name for name in archive.names if pattern.fullmatch(name))
        else:
            names = list(dict.fromkeys(first_named(line, archive.names) for line in self.listed))
        if not names:
            examples = ", ".join([*sorted(archive.names)[:3], "..."]) if archive.names else "nothing"
            reasons = "".join(f"; {what}" for what in list(archive.damage.values())[:1])
            raise DataError(f"{self.source} has no file like rgb={self.config.rgb!r}; it holds {examples}{reasons}")
        frames, rejected = [], damaged_archives(archive)
        for name in names:
            match = pattern.fullmatch(name)
            if match is None:
                raise DataError(f"--list: {name!r} is not like rgb={self.config.rgb!r}")
            frame = _frame(self.config, name, match.groupdict())
            missing = [path for path in frame.files.values() if path not in archive.names]
            if missing:
                rejected.append(Rejection(name=name, reason="missing file", detail=f"no {missing[0]}"))
            else:
                frames.append(frame)
        notes = [*archive.notes, *archive.damage.values()]
        return Listing(frames=with_unique_keys(frames), rejected=rejected, notes=notes, archive=archive)

    def read(self, frame: RawFrame) -> RawSample:
        rgb, turned = self._rgb(frame.files["rgb"])
        depth, intrinsics = self._depth(frame.files["depth"])
        if turned == depth.shape:
            detail = "its EXIF orientation turns it, and its depth may be turned or not; save both upright"
            raise FrameDefectError("turned", f"{frame.files['rgb']}: {detail}")
        info = {"source": frame.name, **frame.fields}
        return rgb, {"depth": depth}, {**info, "intrinsics": intrinsics} if intrinsics else info

    def _rgb(self, name: str) -> tuple[Any, tuple[int, int] | None]:
        """The upright picture, and its stored height and width if it was not."""
        data = read_member(self._archive, name)
        image = decode_image(data, name)
        is_upright = exif_orientation(image) == 1
        if is_upright and image.format == "JPEG" and image.mode == "RGB" and "icc_profile" not in image.info:
            return data, None
        try:
            return image_to_rgb(image), None if is_upright else (image.height, image.width)
        except (ImageError, InvalidValueError) as error:
            raise FrameDefectError("wrong format", f"{name}: {error}") from error

    def _depth(self, name: str) -> tuple[Float32[np.ndarray, "h w"], dict[str, float] | None]:
        config, stored = self.config, self._stored(name)
        known = np.isfinite(stored) & (stored > 0) & ~np.isin(stored, config.invalid)
        if self.keeps_codes:
            depth = self.encoding.meters(np.where(known, stored, 0).astype(np.uint16))
        else:
            meters = np.where(known, stored, 0) * (config.meters_per_unit or 1.0)
            depth = np.where(meters <= _LARGEST_FLOAT32, meters, 0).astype(np.float32)
        height, width = depth.shape
        intrinsics = None
        if config.fx:
            middle = {"cx": config.cx or width / 2, "cy": config.cy or height / 2}
            intrinsics = {"fx": config.fx, "fy": config.fy or config.fx, **middle}
            if config.depth_is == "distance":
                depth = plane_depth(depth, **intrinsics)
        if config.encoding == "log":
            inside = (depth >= config.min_depth) & (depth <= config.max_depth)
            # The code of `min_depth` itself would be 0.
            first = config.min_depth * (config.max_depth / config.min_depth) ** (1 / self.encoding.levels)
            depth = np.where(inside, np.maximum(depth, first), 0).astype(np.float32)
        return depth, intrinsics

    def _stored(self, name: str) -> np.ndarray:
        data = read_member(self._archive, name)
        if self.config.depth_suffix == ".png":
            return decode_codes(data, name)
        try:
            npy = self.config.depth_suffix == ".npy"
            stored = load_npy(data) if npy else self._channel(decode_exr(data, name), name)
        except UnexpectedArrayError as error:
            raise FrameDefectError("wrong format", f"{name}: {error}") from error
        except ValueError as error:
            raise damaged(name, error) from error
        if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
            stored = stored[..., 0] if stored.shape[2] == 1 else stored[0]
        if stored.ndim != 2 or stored.dtype.kind not in "fiu":
            raise FrameDefectError("wrong format", f"{name}: {stored.dtype} of shape {list(stored.shape)}")
        return stored.astype(np.float64)

    def _channel(self, channels: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        wanted = [self.config.exr_channel] if self.config.exr_channel else ["Z", "Y"]
        if len(channels) == 1 and not self.config.exr_channel:
            wanted = list(channels)
        found = next((channel for channel in wanted if channel in channels), None)
        if found is None:
            raise FrameDefectError(
                "wrong format", f"{name} has channels {', '.join(sorted(channels))}; set exr_channel"
            )
        return channels[found]


def _pattern(text: str) -> re.Pattern[str]:
    parts: list[str] = []
    seen: set[str] = set()
    for number, part in enumerate(_FIELD.split(text)):
        if number % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>{'.+' if part == 'path' else '[^/]+'})")
    return re.compile("".join(parts))


def _frame(config: FolderConfig, name: str, fields: dict[str, str]) -> RawFrame:
    def fill(text: str) -> str:
        return _FIELD.sub(lambda match: fields[match[1]], text)

    key = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(fields.values()))
    files = {"rgb": name, "depth": fill(config.depth)}
    return RawFrame(name=name, key=key, kind=fill(config.kind), scene=fill(config.scene), files=files)


def with_unique_keys(frames: list[RawFrame]) -> list[RawFrame]:
    """Frames whose keys are names of samples: keys that are too long or equal get a hash of the frame's name at their
    end.
    """
    counts = Counter(frame.key for frame in frames)

    def key(frame: RawFrame) -> str:
        if counts[frame.key] == 1 and len(frame.key) <= _MAX_KEY:
            return frame.key
        digits = hashlib.sha256(frame.name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return f"{frame.key[: _MAX_KEY - 13]}-{digits}"

    return [dataclasses.replace(frame, key=key(frame)) for frame in frames]
