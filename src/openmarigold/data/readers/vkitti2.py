# SPDX-License-Identifier: Apache-2.0
"""Virtual KITTI 2 (Cabon et al., 2020) from its tars or folders: scenes and variants, KITTI's benchmark crop.

Paper: §4.1. Sky is stored as the far plane, 655.35 m. This is outside the range that training uses, but not "no depth".
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.data.archives import Archive, open_archive
from openmarigold.data.decoding import check_size, decode_codes, decode_image, read_member
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Listing, RawDataSet, RawFrame, RawSample, damaged_archives
from openmarigold.data.shard_writer import Rejection
from openmarigold.errors import DataError, InvalidValueError

SIZE = (375, 1242)
MAX_DEPTH = 80.0
# Pixel centers at +0.5, as everywhere here; the data set states 620.5 and 187, with centers at whole numbers.
INTRINSICS = {"fx": 725.0087, "fy": 725.0087, "cx": 621.0, "cy": 187.5}

FRAMES_PER_CAMERA = {"Scene01": 447, "Scene02": 233, "Scene06": 270, "Scene18": 339, "Scene20": 837}
SPLITS = {"train": ("Scene02", "Scene06", "Scene18", "Scene20"), "val": ("Scene01",), "all": tuple(FRAMES_PER_CAMERA)}
ALL_VARIANTS = (
    "15-deg-left",
    "15-deg-right",
    "30-deg-left",
    "30-deg-right",
    "clone",
    "fog",
    "morning",
    "overcast",
    "rain",
    "sunset",
)
# What the published models were trained on, and what the single-step fine-tuning (E2E-FT) used, of all five scenes.
VARIANT_SETS = {
    "published": ("15-deg-left", "15-deg-right", "clone", "morning", "overcast", "sunset"),
    "e2e-ft": ("morning", "fog", "rain", "sunset", "overcast"),
    "all": ALL_VARIANTS,
}

ABOUT = RawDataSet(
    name="vkitti2",
    title="Virtual KITTI 2: five streets of KITTI rebuilt, in ten variants, two cameras",
    num_images="42,520",
    size="two tars, RGB as JPEG and depth as 16-bit PNG",
    license="CC BY-NC-SA 3.0",
    attribution="Virtual KITTI 2, Cabon et al., Naver Labs Europe, 2020, arXiv:2001.10773, CC BY-NC-SA 3.0",
    where="""\
https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/ (terms to be accepted there). The
tars as they are, or extracted, RGB and depth in one tree or in two:
  {root}/vkitti2/vkitti_2.0.3_rgb.tar
  {root}/vkitti2/vkitti_2.0.3_depth.tar
  {root}/vkitti2/.../Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg
  {root}/vkitti2/.../Scene01/clone/frames/depth/Camera_0/depth_00000.png   (16 bits, centimeters, 65535 = sky)""",
)

_FRAME = re.compile(r"(Scene\d+)/([\w-]+)/frames/(rgb|depth)/(Camera_\d)/\w+_(\d{5})\.(?:jpg|png)")

_Place = tuple[str, str, str, int]


def choose_variants(names: tuple[str, ...]) -> tuple[str, ...]:
    """Variants by name, or by the name of a set ("published", "e2e-ft", "all").

    Raises:
        InvalidValueError: one is not known.
    """
    chosen: list[str] = []
    for name in names:
        if name not in VARIANT_SETS and name not in ALL_VARIANTS:
            raise InvalidValueError(
                f"variant {name!r} is not known; use {', '.join(VARIANT_SETS)}, or some of {', '.join(ALL_VARIANTS)}"
            )
        chosen += VARIANT_SETS.get(name, (name,))
    return tuple(sorted(set(chosen)))


@dataclass(eq=False)
class VirtualKitti2Reader:
    """Frames of Virtual KITTI 2 in a folder with the tars or their content, or in one tar.

    Attributes:
        source: the folder or tar; `list_frames` reads it.
        split: "train" (scenes 02, 06, 18, 20), "val" (scene 01), or "all".
        scenes: these instead of the split's. For the variants "e2e-ft" alone all five are the default.
        variants: names, or names of sets.
        listed: frames to take, a line each with the path of the RGB or depth file, instead of scenes and variants.
        crop: cut both to KITTI's benchmark size; uncropped JPEG files are kept byte for byte.
        size: height and width of every frame.

    Raises:
        InvalidValueError: a name that is not known.
    """

    source: Path
    _: KW_ONLY
    split: str = "train"
    scenes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("published",)
    listed: list[str] | None = None
    crop: bool = True
    size: tuple[int, int] = SIZE

    name = "vkitti2"
    modality = "depth"
    encoding = MapEncoding(kind="linear", meters_per_unit=0.01)  # the source's own codes
    valid_range = (1e-5, MAX_DEPTH)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InvalidValueError(f"split={self.split!r} is not known; use {', '.join(SPLITS)}")
        unknown = [scene for scene in self.scenes if scene not in FRAMES_PER_CAMERA]
        if unknown:
            raise InvalidValueError(f"scene {unknown[0]!r} is not known; use some of {', '.join(FRAMES_PER_CAMERA)}")
        self.encodings = {"depth": self.encoding}
        all_scenes = self.variants == ("e2e-ft",) and self.split == "train"
        self.scenes = self.scenes or SPLITS["all" if all_scenes else self.split]
        self.variants = choose_variants(self.variants)
        self._archive: Archive | None = None

    def settings(self) -> dict[str, Any]:
        return {"crop": list(KITTI_CROP) if self.crop else None, "size": list(self.size)}

    def list_frames(self) -> Listing:
        self._archive = archive = open_archive(self.source)
        found: dict[_Place, dict[str, str]] = {}
        for name in sorted(archive.names):
            if match := _FRAME.search(name):
                place = (match[1], match[2], match[4], int(match[5]))
                found.setdefault(place, {}).setdefault(match[3], name)
        if not found:
            reasons = "".join(f"; {what}" for what in list(archive.damage.values())[:1])
            raise DataError(
                f"{self.source} holds no Scene../<variant>/frames/rgb/Camera_./rgb_*.jpg{reasons}; see `openmarigold "
                "data where vkitti2`"
            )
        notes: list[str] = [*archive.notes, *archive.damage.values()]
        wanted = self._listed_places() if self.listed is not None else self._selected_places(found, notes)
        frames, rejected = [], damaged_archives(archive)
        for place in wanted:
            files = found.get(place, {})
            missing = [what for what in ("rgb", "depth") if what not in files]
            if missing:
                detail = f"no {' and no '.join(missing)} in {self.source}"
                rejected.append(Rejection(name=_rgb_path(place), reason="missing file", detail=detail))
            else:
                frames.append(_frame(place, files))
        return Listing(frames=frames, rejected=rejected, notes=notes, archive=archive)

    def read(self, frame: RawFrame) -> RawSample:
        data = read_member(self._archive, frame.files["rgb"])
        rgb = np.asarray(decode_image(data, frame.files["rgb"]).convert("RGB"))
        codes = decode_codes(read_member(self._archive, frame.files["depth"]), frame.files["depth"])
        check_size(rgb, self.size, frame.files["rgb"])
        check_size(codes, self.size, frame.files["depth"])
        info = {"source": frame.name, **frame.fields, "intrinsics": INTRINSICS}
        if not self.crop:
            return data, {"depth": self.encoding.meters(codes)}, info
        rows, columns = kitti_crop(*self.size)
        shifted = {**INTRINSICS, "cx": INTRINSICS["cx"] - columns.start, "cy": INTRINSICS["cy"] - rows.start}
        depth = self.encoding.meters(np.ascontiguousarray(codes[rows, columns]))
        return np.ascontiguousarray(rgb[rows, columns]), {"depth": depth}, {**info, "intrinsics": shifted}

    def _selected_places(self, found: dict[_Place, dict[str, str]], notes: list[str]) -> list[_Place]:
        places = []
        for scene in sorted(self.scenes):
            numbers = [place[3] for place in found if place[0] == scene]
            if not numbers:
                notes.append(f"{self.source} holds nothing of {scene}")
                continue
            # A gap in the numbers is a missing file. A sequence that ends before the other camera's also lacks files.
            length = max(numbers) + 1
            if length != FRAMES_PER_CAMERA[scene]:
                notes.append(f"{scene} has {length} frames a camera here, {FRAMES_PER_CAMERA[scene]} in the full set")
            for variant in self.variants:
                if not any(place[:2] == (scene, variant) for place in found):
                    notes.append(f"{self.source} holds nothing of {scene}/{variant}")
                    continue
                places += [(scene, variant, f"Camera_{camera}", n) for camera in (0, 1) for n in range(length)]
        return places

    def _listed_places(self) -> list[_Place]:
        places = []
        for line in self.listed or ():
            match = _FRAME.search(line)
            if match is None:
                raise DataError(
                    f"--list: {line!r:.100} names no frame; each line holds a path such as "
                    "Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg"
                )
            places.append((match[1], match[2], match[4], int(match[5])))
        return list(dict.fromkeys(places))


def _frame(place: _Place, files: dict[str, str]) -> RawFrame:
    scene, variant, camera, number = place
    return RawFrame(
        name=_rgb_path(place),
        key=f"{scene}-{variant}-{camera}-{number:05d}",
        kind="street",
        scene=scene,
        files=files,
        fields={"variant": variant, "camera": camera, "frame": number},
    )


def _rgb_path(place: _Place) -> str:
    scene, variant, camera, number = place
    return f"{scene}/{variant}/frames/rgb/{camera}/rgb_{number:05d}.jpg"


KITTI_CROP = (352, 1216)


def kitti_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the 352x1216 window of the KITTI benchmark: at the bottom, centered.

    >>> kitti_crop(375, 1242)
    (slice(23, 375, None), slice(13, 1229, None))

    Raises:
        DataError: the image is smaller.
    """
    crop_height, crop_width = KITTI_CROP
    if height < crop_height or width < crop_width:
        raise DataError(f"an image of {height}x{width} is smaller than KITTI's window of {crop_height}x{crop_width}")
    top, left = height - crop_height, (width - crop_width) // 2
    return slice(top, height), slice(left, left + crop_width)
