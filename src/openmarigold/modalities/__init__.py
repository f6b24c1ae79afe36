# SPDX-License-Identifier: Apache-2.0
"""Modalities: descriptions of what a model predicts."""

from openmarigold.errors import InvalidValueError
from openmarigold.modalities.depth import DEPTH
from openmarigold.modalities.modality import Modality

MODALITIES: dict[str, Modality] = {"depth": DEPTH}


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


def modality_of_pipeline(class_name: object) -> Modality | None:
    """The modality that a pipeline's class in model_index.json predicts; None where no modality claims it."""
    return next((found for found in MODALITIES.values() if class_name in found.pipeline_classes), None)
