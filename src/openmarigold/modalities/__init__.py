# SPDX-License-Identifier: Apache-2.0
"""Modalities: descriptions of what a model predicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from openmarigold.errors import InvalidValueError
from openmarigold.modalities.depth import DEPTH
from openmarigold.modalities.intrinsics import APPEARANCE, LIGHTING
from openmarigold.modalities.metric import METRIC
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.normals import NORMALS

MODALITIES: dict[str, Modality] = {
    modality.name: modality for modality in (DEPTH, NORMALS, APPEARANCE, LIGHTING, METRIC)
}


def find_modality(name: str, space: str | None = None) -> Modality:
    """The modality of a name, and the variant of it whose values are in a space; without one, the modality itself.

    Raises:
        InvalidValueError: there is none.
    """
    if name not in MODALITIES:
        raise InvalidValueError(f"modality={name!r} is not known; use one of {', '.join(MODALITIES)}")
    found = MODALITIES[name]
    if space in (None, found.space):
        return found
    if space not in found.variants:
        raise InvalidValueError(f"space={space!r} is not known; use one of {', '.join((found.space, *found.variants))}")
    return found.variants[space]


def only_modality(names: Sequence[str]) -> Modality | None:
    """The modality of the only name; None where there is no name.

    Raises:
        InvalidValueError: several names, or one that is not known.
    """
    if len(names) > 1:
        raise InvalidValueError(f"modality {', '.join(names)}: only `predict` and `serve` take several; give one")
    return find_modality(names[0]) if names else None


def modality_of_index(index: Mapping[str, Any]) -> Modality | None:
    """The modality that claims a model_index.json, by its pipeline's class; None where none does."""
    classes = index.get("_class_name", DEPTH.pipeline_classes[0])
    found = (modality for modality in MODALITIES.values() if classes in modality.pipeline_classes)
    return next((modality for modality in found if modality.claims(index)), None)
