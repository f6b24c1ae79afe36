# SPDX-License-Identifier: Apache-2.0
"""Modalities: descriptions of what a model predicts."""

from openmarigold.errors import InvalidValueError
from openmarigold.modalities.depth import DEPTH
from openmarigold.modalities.modality import Modality

MODALITIES: dict[str, Modality] = {"depth": DEPTH}


def find_modality(name: str, space: str | None = None) -> Modality:
    """The modality of a name, in the space that a checkpoint states.

    Raises:
        InvalidValueError: there is none.
    """
    if name not in MODALITIES:
        raise InvalidValueError(f"modality={name!r} is not known; use one of {', '.join(MODALITIES)}")
    return MODALITIES[name].in_space(space)


def modality_of_pipeline(class_name: object) -> Modality | None:
    """The modality that a pipeline's class in model_index.json predicts; None where no modality claims it."""
    return next((found for found in MODALITIES.values() if class_name in found.pipeline_classes), None)
