# SPDX-License-Identifier: Apache-2.0
"""Scenes through Blender's path tracer Cycles (package bpy): the only module that imports bpy.

One process has one Blender and keeps its meshes, images and materials from scene to scene, which is most of the cost of
building one. Nothing that is drawn depends on what was rendered before: objects get their tint from their own color
and not from Cycles' random numbers, which depend on names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from openmarigold_render.core import DataError, InvalidValueError, read_exr
from openmarigold_render.errors import MissingPackageError
from openmarigold_render.maps import Light as LinearLight
from openmarigold_render.nodes import background_nodes, shading_nodes, surface_nodes
from openmarigold_render.scene import SMOOTH_ANGLE, Camera, Light, Material, Mesh, Scene, Tint, split_at_edges

BPY_VERSION = "5.0.1"
MAX_CACHED_TRIANGLES = 6_000_000
_NO_TINT = Tint()
_BLENDERS_SCRIPTS = re.compile(r"[/\\]bpy[/\\][0-9.]+[/\\]scripts([/\\]|$)")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How much work goes into a picture."""

    samples: int = 4
    bounces: int = 3
    denoise: bool = True
    device: str = "CPU"
    """CPU or GPU"""
    threads: int = 1
    """CPU threads; 0: all. The same number gives the same picture."""


class Studio:
    """Blender with one scene at a time: `load` it, then `render` views of it."""

    def __init__(self, quality: Quality, folder: Path) -> None:
        """Starts Blender, once per process; pictures pass through files of this process in `folder`.

        Raises:
            MissingPackageError: without bpy.
            InvalidValueError: the device is not there.
        """
        self._bpy = import_bpy()
        self._bpy.ops.wm.read_factory_settings(use_empty=True)
        self._meshes: OrderedDict[int, tuple[Mesh, Any]] = OrderedDict()
        self._materials: dict[Material, Any] = {}
        self._images: dict[Path, Any] = {}
        self._compositing: Any = None
        self._objects: list[Any] = []
        self._picture_path = folder / f"picture-{os.getpid()}.exr"
        self._scene = self._bpy.context.scene
        self._camera = self._bpy.data.objects.new("camera", self._bpy.data.cameras.new("camera"))
        self._scene.collection.objects.link(self._camera)
        self._scene.camera = self._camera
        self._world = self._bpy.data.worlds.new("sky")
        self._world.cycles.sampling_method = "MANUAL"
        self._world.cycles.sample_map_resolution = 128  # the automatic size costs 2 s a scene
        self._scene.world = self._world
        self._configure(quality)

    def load(self, scene: Scene) -> None:
        """Makes `scene` the one that is rendered.

        Raises:
            DataError: a texture that cannot be read, by name.
        """
        # Cycles keeps its session for the views of a scene but not longer: what it removes and what it adds may change
        # the order of lights, and that decides which of them a path asks.
        self._scene.render.use_persistent_data = False
        self._scene.render.use_persistent_data = True
        data = self._bpy.data
        data.batch_remove([*self._objects, *(one.data for one in self._objects if one.type == "LIGHT")])
        self._objects = []
        for number, instance in enumerate(scene.instances, start=1):
            thing = data.objects.new(f"{number:05d}", self._mesh(instance.mesh))
            thing.matrix_world = _matrix(instance.transform)
            thing.pass_index = number
            tint = instance.tint or _NO_TINT
            thing.color = (tint.hue + 0.5, tint.saturation, tint.value, 1.0)
            self._add(thing)
        for number, light in enumerate(scene.lights):
            self._add(self._light(f"light {number}", light))
        background_nodes(self._world, scene.sky)
        self._forget_meshes(keep={id(instance.mesh) for instance in scene.instances})

    def render(self, camera: Camera, *, seed: int) -> Float[np.ndarray, "h w 3"]:
        """Linear colors of a view, from 0 up."""
        channels = self._render(camera, seed, layers=False)
        return _colors(channels)

    def render_light(self, camera: Camera, *, seed: int) -> LinearLight:
        """A view whose colors are those of `render`, with what makes them: Cycles' diffuse passes.

        Shading is direct and indirect diffuse light; its noise is removed as that of the colors is, but with normals
        as the only guide, so that no pattern of the albedo gets into it.
        """
        layer = self._scene.view_layers[0]
        names = ("use_pass_diffuse_color", "use_pass_diffuse_direct", "use_pass_diffuse_indirect")
        for name in names:
            setattr(layer, name, True)
        denoises = self._scene.cycles.use_denoising
        layer.cycles.denoising_store_passes = denoises
        if denoises:
            self._scene.compositing_node_group = self._shading_nodes()
            self._scene.render.use_compositing = True
        try:
            channels = self._render(camera, seed, layers=True)
        finally:
            for name in names:
                setattr(layer, name, False)
            layer.cycles.denoising_store_passes = self._scene.render.use_compositing = False
        direct, indirect = (_colors(channels, f"ViewLayer.Diffuse {what}") for what in ("Direct", "Indirect"))
        return LinearLight(
            color=_colors(channels, "ViewLayer.Combined"),
            albedo=_colors(channels, "ViewLayer.Diffuse Color"),
            shading=_colors(channels, "Composite.Combined") if denoises else direct + indirect,
        )

    def _shading_nodes(self) -> Any:
        if self._compositing is None:
            self._compositing = self._bpy.data.node_groups.new("shading", "CompositorNodeTree")
            shading_nodes(self._compositing, self._scene)
        return self._compositing

    def passes(
        self, camera: Camera
    ) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
        """Cycles' own planar depth [m], 0 where no surface is, object ids, 0 for none, and normals in the world.

        One ray through the center of each pixel, as `rays.cast_picture` has it: what checks compare with.
        """
        layer = self._scene.view_layers[0]
        cycles = self._scene.cycles
        before = (cycles.samples, cycles.pixel_filter_type, cycles.use_denoising, layer.pass_alpha_threshold)
        layer.use_pass_z = layer.use_pass_object_index = layer.use_pass_normal = True
        layer.pass_alpha_threshold = 0.03
        cycles.samples, cycles.pixel_filter_type, cycles.use_denoising = 1, "BOX", False
        cycles.filter_width = 0.01
        try:
            channels = self._render(camera, 0, layers=True)
        finally:
            layer.use_pass_z = layer.use_pass_object_index = layer.use_pass_normal = False
            cycles.samples, cycles.pixel_filter_type, cycles.use_denoising, layer.pass_alpha_threshold = before
            cycles.filter_width = 1.5
        depth = next(pixels for name, pixels in channels.items() if "Depth" in name)
        ids = next(pixels for name, pixels in channels.items() if "Object Index" in name or "IndexOB" in name)
        normals = np.stack([_channel(channels, f"Normal.{axis}") for axis in "XYZ"], axis=-1).astype(np.float32)
        return np.where(depth < 1e9, depth, 0.0).astype(np.float32), np.asarray(ids, dtype=np.float32), normals

    def _render(self, camera: Camera, seed: int, *, layers: bool) -> Mapping[str, Shaped[np.ndarray, "h w"]]:
        self._point(camera)
        self._scene.cycles.seed = seed & 0x7FFFFFFF
        settings = self._scene.render.image_settings
        settings.media_type = "MULTI_LAYER_IMAGE" if layers else "IMAGE"
        settings.file_format = "OPEN_EXR_MULTILAYER" if layers else "OPEN_EXR"
        settings.color_depth = "32"
        settings.exr_codec = "NONE"
        settings.use_exr_interleave = True  # one part with all layers
        self._scene.render.filepath = str(self._picture_path)
        self._bpy.ops.render.render(write_still=True)
        return read_exr(self._picture_path)

    def _point(self, camera: Camera) -> None:
        render, lens = self._scene.render, self._camera.data
        render.resolution_x, render.resolution_y, render.resolution_percentage = camera.width, camera.height, 100
        lens.sensor_fit = "HORIZONTAL"
        lens.sensor_width = 36.0
        lens.lens = 36.0 * camera.focal_px / camera.width
        lens.clip_start, lens.clip_end = 0.01, 10_000.0
        flipped = camera.transform.copy()
        flipped[:3, 1:3] *= -1.0  # Blender's cameras look along -Z with +Y up
        self._camera.matrix_world = _matrix(flipped)

    def _configure(self, quality: Quality) -> None:
        scene = self._scene
        scene.render.engine = "CYCLES"
        scene.render.film_transparent = False
        scene.render.use_persistent_data = True
        scene.render.use_compositing = scene.render.use_sequencer = False
        if quality.threads:
            scene.render.threads_mode = "FIXED"
            scene.render.threads = quality.threads
        scene.view_settings.view_transform = "Raw"
        cycles = scene.cycles
        cycles.device = quality.device
        if quality.device == "GPU":
            _choose_gpu(self._bpy)
        cycles.samples = quality.samples
        cycles.use_adaptive_sampling = False
        cycles.use_denoising = quality.denoise
        cycles.denoiser = "OPENIMAGEDENOISE"
        cycles.denoising_use_gpu = False
        cycles.denoising_prefilter = "FAST"
        cycles.denoising_quality = "BALANCED"
        cycles.max_bounces = quality.bounces
        cycles.diffuse_bounces = min(2, quality.bounces)
        cycles.glossy_bounces = min(2, quality.bounces)
        cycles.transmission_bounces = quality.bounces
        cycles.transparent_max_bounces = 12
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.sample_clamp_indirect = 4.0
        cycles.light_sampling_threshold = 0.05
        cycles.use_light_tree = False  # scenes have few lamps: a quarter slower, and no less noise
        cycles.texture_limit_render = "1024"
        cycles.use_auto_tile = False
        cycles.pixel_filter_type, cycles.filter_width = "BLACKMAN_HARRIS", 1.5

    def _add(self, thing: Any) -> None:
        self._scene.collection.objects.link(thing)
        self._objects.append(thing)

    def _mesh(self, mesh: Mesh) -> Any:
        cached = self._meshes.get(id(mesh))
        if cached is not None:
            self._meshes.move_to_end(id(mesh))
            return cached[1]
        made = self._bpy.data.meshes.new(mesh.name[:60])
        original = mesh
        if mesh.smooth:  # split here: with Blender's own sharp edges a few normals differ from run to run
            mesh = split_at_edges(mesh, SMOOTH_ANGLE)
        made.use_fake_user = True
        count = len(mesh.faces)
        made.vertices.add(len(mesh.vertices))
        made.vertices.foreach_set("co", np.ascontiguousarray(mesh.vertices, dtype=np.float32).ravel())
        made.loops.add(3 * count)
        made.loops.foreach_set("vertex_index", np.ascontiguousarray(mesh.faces, dtype=np.int32).ravel())
        made.polygons.add(count)
        made.polygons.foreach_set("loop_start", np.arange(0, 3 * count, 3, dtype=np.int32))
        for material in mesh.materials:
            made.materials.append(self._material(material, has_uvs=mesh.uvs is not None))
        made.polygons.foreach_set("material_index", np.ascontiguousarray(mesh.face_materials, dtype=np.int32))
        if mesh.uvs is not None:
            layer = made.uv_layers.new(name="UVMap")
            layer.uv.foreach_set("vector", np.ascontiguousarray(mesh.uvs, dtype=np.float32).ravel())
        made.update(calc_edges=True)
        if mesh.smooth:
            made.shade_smooth()
        else:
            made.shade_flat()
        self._meshes[id(original)] = (original, made)  # holding the mesh keeps its id from being given to another one
        return made

    def _forget_meshes(self, keep: set[int]) -> None:
        triangles = sum(len(mesh.faces) for mesh, _ in self._meshes.values())
        procedural = [key for key, (mesh, _) in self._meshes.items() if mesh.source is None and key not in keep]
        oldest = [key for key, (mesh, _) in self._meshes.items() if mesh.source is not None and key not in keep]
        gone = []
        for key in [*procedural, *oldest]:
            mesh, made = self._meshes[key]
            if mesh.source is not None and triangles <= MAX_CACHED_TRIANGLES:
                break
            triangles -= len(mesh.faces)
            gone.append(made)
            del self._meshes[key]
        if gone:
            self._bpy.data.batch_remove(gone)
            used = {slot for _, made in self._meshes.values() for slot in made.materials}
            unused = {material: made for material, made in self._materials.items() if made not in used}
            for material in unused:
                del self._materials[material]
            self._bpy.data.batch_remove(list(unused.values()))

    def _material(self, material: Material, *, has_uvs: bool) -> Any:
        if material not in self._materials:
            made = self._bpy.data.materials.new(material.name[:60])
            made.use_fake_user = True
            image = None if material.texture is None else self._image(material.texture)
            surface_nodes(made, material, image, has_uvs=has_uvs)
            self._materials[material] = made
        return self._materials[material]

    def _image(self, path: Path) -> Any:
        if path not in self._images:
            try:
                image = self._bpy.data.images.load(str(path))
            except RuntimeError:
                image = None
            if image is None or min(image.size) == 0:  # would be drawn in magenta
                raise DataError(f"{path} is not an image that Blender reads; leave out what uses it")
            image.use_fake_user = True
            self._images[path] = image
        return self._images[path]

    def _light(self, name: str, light: Light) -> Any:
        lamp = self._bpy.data.lights.new(name, light.kind.upper())
        lamp.color = light.color
        lamp.energy = light.power
        if light.kind == "area":
            lamp.shape, lamp.size, lamp.size_y = "RECTANGLE", *light.size
        elif light.kind == "point":
            lamp.shadow_soft_size = light.size[0]
        else:
            lamp.angle = light.size[0]
        thing = self._bpy.data.objects.new(name, lamp)
        forward = np.asarray(light.direction, dtype=np.float64)
        thing.matrix_world = _matrix(_facing(light.position, forward / np.linalg.norm(forward)))
        thing.visible_camera = False
        return thing


def import_bpy() -> Any:
    """The module bpy.

    A process that imported it passes its paths on to those it starts. Among them are the folders of Blender's own
    scripts, where another `bpy` lies, so these are left out first.

    Raises:
        MissingPackageError: it is not installed, or does not exist for this Python.
    """
    if "bpy" not in sys.modules:
        sys.path[:] = [path for path in sys.path if not _BLENDERS_SCRIPTS.search(path)]
    try:
        import bpy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(_why_no_bpy()) from error
    return bpy


def require_bpy() -> None:
    """Checks that bpy is there, without starting Blender in this process.

    Raises:
        MissingPackageError: it is not installed, or does not exist for this Python.
    """
    if importlib.util.find_spec("bpy") is None:
        raise MissingPackageError(_why_no_bpy())


def _why_no_bpy() -> str:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "bpy (Blender)" if running == "3.11" else f"bpy (Blender {BPY_VERSION}, for Python 3.11; this is {running})"


def _choose_gpu(bpy: Any) -> None:
    preferences = bpy.context.preferences.addons["cycles"].preferences
    for kind in ("OPTIX", "CUDA", "HIP", "METAL", "ONEAPI"):
        try:
            preferences.compute_device_type = kind
        except TypeError:  # not built for this platform
            continue
        preferences.refresh_devices()
        devices = [device for device in preferences.devices if device.type == kind]
        for device in devices:
            device.use = True
        if devices:
            return
    raise InvalidValueError("device='gpu': Cycles finds no GPU here; use --device cpu, or check the driver")


def _facing(position: tuple[float, float, float], forward: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "4 4"]:
    """Lights shine along their own -Z."""
    up = np.array((0.0, 0.0, 1.0)) if abs(forward[2]) < 0.999 else np.array((0.0, 1.0, 0.0))
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, np.cross(right, forward), -forward
    matrix[:3, 3] = position
    return matrix


def _matrix(matrix: Float[np.ndarray, "4 4"]) -> Any:
    from mathutils import Matrix  # pyright: ignore[reportMissingImports]

    return Matrix(matrix.tolist())


def _colors(channels: Mapping[str, Shaped[np.ndarray, "h w"]], layer: str = "") -> Float[np.ndarray, "h w 3"]:
    names = (f"{layer}.{name}" if layer else name for name in "RGB")
    picture = np.stack([_channel(channels, name) for name in names], axis=-1)
    return np.nan_to_num(np.maximum(picture.astype(np.float32), 0.0), nan=0.0, posinf=0.0)


def _channel(channels: Mapping[str, Shaped[np.ndarray, "h w"]], name: str) -> Shaped[np.ndarray, "h w"]:
    return next(pixels for key, pixels in channels.items() if key == name or key.endswith(f".{name}"))


def seed_of(name: str) -> int:
    """A seed for Cycles from a frame's name."""
    return zlib.crc32(name.encode())
