# SPDX-License-Identifier: Apache-2.0
"""glTF 2.0 in one binary file (GLB): a mesh with its photo as texture, or points with colors.

Format: Khronos, glTF 2.0 specification. Right-handed, y up, the camera at 0 and looking along -z; a unit is a meter
where lengths are in meters. A photo holds its light already, so materials are unlit (KHR_materials_unlit). Our own
writer: it is shorter than what a library would need to be told, and its bytes depend on nothing else.
"""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from openmarigold.images.pixels import light_of_pixels
from openmarigold.reconstruction.saving import Origin, upright

MAX_TEXTURE_SIDE = 4096
"""Pixels; larger ones are refused by some graphics cards and phones."""

_MAGIC, _VERSION = 0x46546C67, 2
_JSON, _BINARY = 0x4E4F534A, 0x004E4942
_FLOAT, _UINT32 = 5126, 5125  # types of components
_VERTICES, _INDICES = 34962, 34963  # what a buffer view is for
_POINTS, _TRIANGLES = 0, 4
_TEXTURE_QUALITY = 92
_MAX_JSON_BYTES = 2**24
_UNLIT = "KHR_materials_unlit"


def write_glb(
    path: Path,
    points: Float32[np.ndarray, "n 3"],
    *,
    triangles: Int32[np.ndarray, "t 3"] | None = None,
    normals: Float32[np.ndarray, "n 3"] | None = None,
    uv: Float32[np.ndarray, "n 2"] | None = None,
    texture: UInt8[np.ndarray, "h w 3"] | None = None,
    colors: UInt8[np.ndarray, "n 3"] | None = None,
    origin: Origin,
) -> None:
    """Writes points or, with triangles, a mesh. Vectors are given in OpenCV's axes.

    A texture is kept as JPEG, its longer side at most `MAX_TEXTURE_SIDE`. Without texture and colors a mesh is gray and
    lit, with its normals. Colors (sRGB) are stored as linear light, as glTF asks for; as float32, since some readers
    take numbers of 16 bits for 8.
    """
    parts = _Parts()
    attributes = {"POSITION": parts.add_array(upright(points), _FLOAT, "VEC3", _VERTICES, bounds=True)}
    primitive: dict[str, Any] = {"attributes": attributes, "material": 0}
    primitive["mode"] = _POINTS if triangles is None else _TRIANGLES
    lit = texture is None and colors is None and normals is not None
    if lit and normals is not None:
        attributes["NORMAL"] = parts.add_array(upright(normals), _FLOAT, "VEC3", _VERTICES)
    if colors is not None:
        attributes["COLOR_0"] = parts.add_array(light_of_pixels(colors).astype("<f4"), _FLOAT, "VEC3", _VERTICES)
    if uv is not None and texture is not None:
        attributes["TEXCOORD_0"] = parts.add_array(np.asarray(uv, dtype="<f4"), _FLOAT, "VEC2", _VERTICES)
    if triangles is not None:
        indices = np.asarray(triangles, dtype="<u4").reshape(-1)
        primitive["indices"] = parts.add_array(indices, _UINT32, "SCALAR", _INDICES)
    content = _content(primitive, origin, textured=texture is not None, lit=lit)
    if texture is not None:
        content["images"] = [{"mimeType": "image/jpeg", "bufferView": parts.add_bytes(_jpeg(texture))}]
    content |= {"accessors": parts.accessors, "bufferViews": parts.views, "buffers": [{"byteLength": parts.length}]}
    text = json.dumps(content, ensure_ascii=True, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    with path.open("wb") as file:
        file.write(struct.pack("<3I", _MAGIC, _VERSION, 12 + 8 + len(text) + 8 + parts.length))
        file.write(struct.pack("<2I", len(text), _JSON) + text)
        file.write(struct.pack("<2I", parts.length, _BINARY))
        for block in parts.blocks:
            file.write(block)


class _Parts:
    """What the binary chunk holds: blocks of whole words, each with a buffer view."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []
        self.length = 0

    def add_bytes(self, block: bytes) -> int:
        """The number of its view."""
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": len(block)})
        self.blocks.append(block + bytes(-len(block) % 4))
        self.length += len(self.blocks[-1])
        return len(self.views) - 1

    def add_array(
        self, values: np.ndarray, component: int, accessor_type: str, target: int, *, bounds: bool = False
    ) -> int:
        """The number of its accessor."""
        view = self.add_bytes(values.tobytes())
        self.views[view]["target"] = target
        accessor: dict[str, Any] = {
            "bufferView": view,
            "componentType": component,
            "count": len(values),
            "type": accessor_type,
        }
        if bounds:
            accessor |= {name: [float(one) for one in getattr(values, name)(axis=0)] for name in ("min", "max")}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _content(primitive: dict[str, Any], origin: Origin, *, textured: bool, lit: bool) -> dict[str, Any]:
    look: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    material: dict[str, Any] = {"name": "photo" if textured else "plain", "doubleSided": True}
    material["pbrMetallicRoughness"] = look
    content: dict[str, Any] = {}  # what only some files have
    if textured:
        look["baseColorTexture"] = {"index": 0}
        content["textures"] = [{"source": 0, "sampler": 0}]
        content["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
    if not lit:
        material["extensions"] = {_UNLIT: {}}
        content["extensionsUsed"] = [_UNLIT]
    nodes: list[dict[str, Any]] = [{"name": "photo", "mesh": 0}]
    if origin.camera is not None:
        camera = origin.camera
        view: dict[str, float] = {"yfov": 2 * math.atan(camera.height / (2 * camera.fy)), "znear": 0.001}
        view["aspectRatio"] = (camera.width / camera.fx) / (camera.height / camera.fy)
        content["cameras"] = [{"name": "photo's camera", "type": "perspective", "perspective": view}]
        nodes.append({"name": "photo's camera", "camera": 0})
    statement = origin.statement
    extras = {"openmarigold": statement, **{name: statement[name] for name in ("length_unit", "axes")}}
    return {
        "asset": {"version": "2.0", "generator": "OpenMarigold", "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": [{"name": "photo", "primitives": [primitive]}],
        "materials": [material],
        **content,
    }


def _jpeg(texture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    image = Image.fromarray(texture)
    if max(image.size) > MAX_TEXTURE_SIDE:
        factor = MAX_TEXTURE_SIDE / max(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_TEXTURE_QUALITY, subsampling=0)
    return buffer.getvalue()


def read_glb_json(path: Path) -> dict[str, Any] | None:
    """The JSON chunk of a GLB file; None for other files and for one whose chunk is not whole.

    Raises:
        OSError: the file cannot be read.
    """
    from openmarigold.text_files import DamagedTextError, parse_json

    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20:
            return None
        magic, _, _, length, chunk_type = struct.unpack("<5I", head)
        if magic != _MAGIC or chunk_type != _JSON or length > _MAX_JSON_BYTES:
            return None
        text = file.read(length)
    try:
        content = parse_json(text)
    except DamagedTextError:
        return None
    return content if isinstance(content, dict) else None
