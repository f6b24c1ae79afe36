# SPDX-License-Identifier: Apache-2.0
"""Materials, patterns and skies as Blender's shader nodes. Takes Blender's objects; imports nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmarigold_render.scene import Color, Material, Pattern, Sky

# Stretch of noise along a board, in lengths of its grain.
_GRAIN = 14.0


class _Tree:
    """A node tree under construction."""

    def __init__(self, tree: Any) -> None:
        tree.nodes.clear()
        self._tree = tree

    def node(self, kind: str, inputs: Mapping[Any, Any] | None = None, **properties: Any) -> Any:
        """A new node; inputs are values or outputs of other nodes."""
        made = self._tree.nodes.new(f"ShaderNode{kind}")
        for name, value in properties.items():
            setattr(made, name, value)
        for key, value in (inputs or {}).items():
            if hasattr(value, "is_output"):
                self._tree.links.new(value, made.inputs[key])
            else:
                made.inputs[key].default_value = value
        return made

    def math(self, operation: str, *values: Any) -> Any:
        return self.node("Math", dict(enumerate(values)), operation=operation).outputs[0]

    def mix(self, factor: Any, a: Any, b: Any, *, blend: str = "MIX") -> Any:
        return self.node("Mix", {0: factor, 6: a, 7: b}, data_type="RGBA", blend_type=blend).outputs[2]

    def noise(self, vector: Any, scale: float, *, detail: float = 3.0, roughness: float = 0.55) -> Any:
        inputs = {"Vector": vector, "Scale": scale, "Detail": detail, "Roughness": roughness}
        return self.node("TexNoise", inputs).outputs[0]

    def moved(self, vector: Any, scale: tuple[float, float, float], seed: int) -> Any:
        shift = (0.0137 * (seed % 9973), 0.0219 * (seed % 7919), 0.0071 * (seed % 6133))
        return self.node("Mapping", {"Vector": vector, "Scale": scale, "Location": shift}).outputs[0]

    def ramp(self, factor: Any, low: float, high: float) -> Any:
        """`factor` from [low, high] to [0, 1], clamped."""
        return self.node("MapRange", {0: factor, 1: low, 2: high}, interpolation_type="SMOOTHSTEP").outputs[0]


def surface_nodes(made: Any, material: Material, image: Any | None, *, has_uvs: bool) -> None:
    """Builds the nodes of a material of Blender."""
    tree = _Tree(made.node_tree)
    coordinates = tree.node("TexCoord")
    vector = coordinates.outputs["UV" if has_uvs else "Object"]
    height = None
    alpha = None
    if image is not None and has_uvs:
        if material.texture_size != 1.0:
            shrink = (1.0 / material.texture_size,) * 3
            vector = tree.node("Mapping", {"Vector": vector, "Scale": shrink}).outputs[0]
        sampled = tree.node("TexImage", {"Vector": vector}, image=image, extension="REPEAT", interpolation="Linear")
        color = sampled.outputs["Color"]
        if material.texture_gain != (1.0, 1.0, 1.0):
            color = tree.mix(1.0, color, _rgba(material.texture_gain), blend="MULTIPLY")
        if material.saturation != 1.0:
            color = tree.node("HueSaturation", {"Saturation": material.saturation, "Color": color}).outputs[0]
        if material.cutout:
            # The nearest texel, as the ray caster takes it.
            nearest = tree.node(
                "TexImage", {"Vector": vector}, image=image, extension="REPEAT", interpolation="Closest"
            )
            alpha = tree.math("GREATER_THAN", nearest.outputs["Alpha"], 0.5)
    elif material.pattern is not None:
        color, height = _pattern(tree, material.pattern, vector)
    else:
        color = tree.node("RGB").outputs[0]
        color.default_value = _rgba(material.base_color)
    if material.tinted:
        tint = tree.node("SeparateColor", {0: tree.node("ObjectInfo").outputs["Color"]})
        inputs = {"Hue": tint.outputs[0], "Saturation": tint.outputs[1], "Value": tint.outputs[2], "Color": color}
        color = tree.node("HueSaturation", inputs).outputs[0]
    inputs = {
        "Base Color": color,
        "Roughness": material.roughness,
        "Metallic": material.metallic,
        "Transmission Weight": material.transmission,
    }
    if material.emission:
        inputs |= {"Emission Color": color, "Emission Strength": material.emission}
    if material.pattern is not None and material.pattern.relief and height is not None:
        bump = tree.node("Bump", {"Strength": material.pattern.relief, "Distance": 0.004, "Height": height})
        inputs["Normal"] = bump.outputs[0]
    surface = tree.node("BsdfPrincipled", inputs).outputs[0]
    if alpha is not None:
        surface = tree.node("MixShader", {0: alpha, 1: tree.node("BsdfTransparent").outputs[0], 2: surface}).outputs[0]
    tree.node("OutputMaterial", {"Surface": surface})


def background_nodes(world: Any, sky: Sky) -> None:
    """Builds the nodes of the sky: two colors over the height, and clouds."""
    tree = _Tree(world.node_tree)
    vector = tree.node("TexCoord").outputs["Generated"]
    height = tree.node("SeparateXYZ", {0: vector}).outputs[2]
    color = tree.mix(tree.ramp(height, 0.0, 0.5), _rgba(sky.horizon), _rgba(sky.zenith))
    if sky.clouds > 0:
        flat = tree.math("MAXIMUM", height, 0.06)
        ceiling = tree.node("VectorMath", {0: vector, 1: flat}, operation="DIVIDE").outputs[0]
        figure = tree.noise(tree.moved(ceiling, (1.0, 1.0, 1.0), sky.seed), 1.3, detail=5.0)
        cover = tree.ramp(figure, 0.66 - 0.35 * sky.clouds, 0.80 - 0.35 * sky.clouds)
        above = tree.math("MULTIPLY", cover, tree.ramp(height, 0.02, 0.14))
        shade = 0.35 * sum(sky.horizon) + 0.05
        color = tree.mix(above, color, (shade, shade, 1.02 * shade, 1.0))
    background = tree.node("Background", {"Color": color, "Strength": sky.strength})
    tree.node("OutputWorld", {"Surface": background.outputs[0]})


def shading_nodes(group: Any, scene: Any) -> None:
    """Builds compositor nodes: the sum of direct and indirect diffuse light, its noise removed."""
    nodes, links = group.nodes, group.links
    group.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
    layers = nodes.new("CompositorNodeRLayers")
    layers.scene = scene
    total = nodes.new("ShaderNodeMix")
    total.data_type, total.blend_type, total.clamp_result = "RGBA", "ADD", False
    total.inputs[0].default_value = 1.0
    denoised = nodes.new("CompositorNodeDenoise")
    links.new(layers.outputs["Diffuse Direct"], total.inputs[6])
    links.new(layers.outputs["Diffuse Indirect"], total.inputs[7])
    links.new(total.outputs[2], denoised.inputs["Image"])
    links.new(layers.outputs["Denoising Normal"], denoised.inputs["Normal"])
    links.new(denoised.outputs[0], nodes.new("NodeGroupOutput").inputs[0])


def _rgba(color: Color) -> tuple[float, float, float, float]:
    return (*color, 1.0)


def _pattern(tree: _Tree, pattern: Pattern, vector: Any) -> tuple[Any, Any]:
    """Color and height of a pattern; coordinates in meters."""
    scale, contrast = pattern.scale, pattern.contrast
    colors = [_rgba(color) for color in pattern.colors]
    first, second, last = colors[0], colors[min(1, len(colors) - 1)], colors[-1]
    vector = tree.moved(vector, (1.0, 1.0, 1.0), pattern.seed)
    if pattern.kind == "wood":
        figure = _wood(tree, vector, scale)
        return tree.mix(tree.math("MULTIPLY", figure, contrast), first, last), figure
    if pattern.kind == "planks":
        boards = _blocks(tree, vector, second, last, first, length=scale, width=0.11 * scale, joint=0.0015, offset=0.37)
        grain = tree.math("MULTIPLY", _wood(tree, vector, 0.02), 0.45 * contrast)
        return tree.mix(grain, boards.outputs[0], first, blend="MULTIPLY"), tree.math(
            "SUBTRACT", 1.0, boards.outputs[1]
        )
    if pattern.kind in ("tiles", "bricks"):
        length, width, joint = (
            (scale, scale, 0.012 * scale) if pattern.kind == "tiles" else (scale, 0.32 * scale, 0.008)
        )
        offset = 0.0 if pattern.kind == "tiles" else 0.5
        blocks = _blocks(tree, vector, second, last, first, length=length, width=width, joint=joint, offset=offset)
        speckle = tree.ramp(tree.noise(vector, 9.0 / scale, detail=5.0, roughness=0.65), 0.25, 0.75)
        shade = tree.math("MULTIPLY_ADD", speckle, 0.35 * contrast, 1.0 - 0.25 * contrast)
        color = tree.mix(
            1.0,
            blocks.outputs[0],
            tree.node("CombineColor", {0: shade, 1: shade, 2: shade}).outputs[0],
            blend="MULTIPLY",
        )
        return color, tree.math("SUBTRACT", 1.0, blocks.outputs[1])
    if pattern.kind == "fabric":
        weave = tree.node("TexChecker", {"Vector": vector, "Scale": 1.0 / scale}).outputs[1]
        threads = tree.noise(tree.moved(vector, (1.0, 7.0, 1.0), 1), 0.4 / scale, detail=2.0)
        figure = tree.math("MULTIPLY_ADD", weave, 0.35, tree.math("MULTIPLY", threads, 0.65))
        return tree.mix(tree.math("MULTIPLY", tree.ramp(figure, 0.2, 0.8), contrast), first, last), figure
    if pattern.kind == "carpet":
        pile = tree.noise(vector, 1.0 / scale, detail=4.0, roughness=0.8)
        worn = tree.noise(vector, 0.02 / scale, detail=2.0)
        figure = tree.math("MULTIPLY_ADD", pile, 0.75, tree.math("MULTIPLY", worn, 0.25))
        return tree.mix(tree.math("MULTIPLY", tree.ramp(figure, 0.35, 0.65), contrast), first, last), pile
    if pattern.kind == "stone":
        grains = tree.noise(vector, 1.0 / scale, detail=7.0, roughness=0.7)
        large = tree.noise(tree.moved(vector, (1.0, 1.6, 1.0), 3), 0.16 / scale, detail=4.0)
        figure = tree.ramp(tree.math("MULTIPLY_ADD", grains, 0.6, tree.math("MULTIPLY", large, 0.4)), 0.35, 0.65)
        return tree.mix(tree.math("MULTIPLY", figure, contrast), first, last), grains
    if pattern.kind == "plaster":
        fine = tree.noise(vector, 1.0 / scale, detail=4.0, roughness=0.7)
        large = tree.noise(vector, 0.7, detail=2.0)
        figure = tree.math("MULTIPLY_ADD", fine, 0.3, tree.math("MULTIPLY", large, 0.7))
        return tree.mix(tree.math("MULTIPLY", tree.ramp(figure, 0.3, 0.7), contrast), first, last), fine
    if pattern.kind == "checks":
        checks = tree.node("TexChecker", {"Vector": vector, "Scale": 1.0 / scale}).outputs[1]
        return tree.mix(tree.math("MULTIPLY", checks, contrast), first, last), checks
    position = tree.node("SeparateXYZ", {0: vector}).outputs[0]
    band = tree.math("FRACT", tree.math("DIVIDE", position, 2.0 * scale))
    stripes = tree.math("GREATER_THAN", band, 0.5)
    return tree.mix(tree.math("MULTIPLY", stripes, contrast), first, last), stripes


def _wood(tree: _Tree, vector: Any, scale: float) -> Any:
    """Grain along u, [0, 1]; `scale` is the distance between rings [m]."""
    fibers = tree.noise(tree.moved(vector, (1.0, _GRAIN, _GRAIN), 2), 0.22 / scale, detail=5.0, roughness=0.65)
    bent = tree.noise(tree.moved(vector, (0.35, 1.0, 1.0), 5), 0.09 / scale, detail=2.0)
    rings = tree.math("MULTIPLY_ADD", bent, 9.0, tree.math("MULTIPLY", fibers, 1.2))
    rings = tree.math("MULTIPLY_ADD", tree.math("SINE", tree.math("MULTIPLY", rings, 3.1)), 0.5, 0.5)
    return tree.math("MULTIPLY_ADD", rings, 0.45, tree.math("MULTIPLY", tree.ramp(fibers, 0.3, 0.7), 0.55))


def _blocks(
    tree: _Tree, vector: Any, a: Any, b: Any, joints: Any, *, length: float, width: float, joint: float, offset: float
) -> Any:
    inputs = {
        "Vector": vector,
        "Color1": a,
        "Color2": b,
        "Mortar": joints,
        "Scale": 1.0,
        "Mortar Size": joint,
        "Mortar Smooth": 0.1,
        "Brick Width": length,
        "Row Height": width,
    }
    return tree.node("TexBrick", inputs, offset=offset, offset_frequency=2, squash=1.0)
