# SPDX-License-Identifier: Apache-2.0
"""The settings of a run that depend on more than its recipe: on its validation sets, and on the run that it continues.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from openmarigold.errors import RecipeError
from openmarigold.printing import quoted_logger
from openmarigold.training.recipe import MarigoldRecipe, Recipe

LOGGER = quoted_logger(__name__)
DEFAULT_HELD_OUT = 0.05
# Values that reproduce earlier versions, whose recipes do not have these keys.
_EARLIER = {"data": {"held_out": 0.0, "caps": False}}
_Recipe = TypeVar("_Recipe", bound=Recipe)


def with_earlier_behavior(table: Mapping[str, Any]) -> dict[str, Any]:
    """A saved recipe with the keys that its version did not have, at the values that do what that version did."""
    found = dict(table)
    for section, values in _EARLIER.items():
        if section in found:
            found[section] = {**values, **found[section]}
    return found


def resolved(recipe: _Recipe, saved: Mapping[str, Any] | None = None, *, has_benchmark: bool = False) -> _Recipe:
    """The recipe with everything decided: scenes held out, caps of depth, and the end of the rate's decay.

    Args:
        saved: the recipe of the state that the run continues, as `to_table` gives it; None for a new run.
        has_benchmark: whether the command names a benchmark.

    A continued run may have more steps than before. Its learning rate then decays until the same step as before, and
    stays there. So the finished steps equal those of a run that had the larger number of steps, and this `decay_steps`,
    from its start.

    Raises:
        RecipeError: fewer steps than the saved run has.
    """
    if saved is not None:
        saved = with_earlier_behavior(saved)
    if recipe.data.held_out is None:
        share = 0.0
        if saved is not None:
            share = float(saved.get("data", {}).get("held_out") or 0.0)
        elif isinstance(recipe, MarigoldRecipe):
            is_named = has_benchmark or recipe.validation.benchmarks or recipe.validation.sources
            share = 0.0 if is_named else DEFAULT_HELD_OUT
        recipe = replace(recipe, data=replace(recipe.data, held_out=share))
    if recipe.data.caps is None:
        caps = True if saved is None else bool(saved.get("data", {}).get("caps"))
        recipe = replace(recipe, data=replace(recipe.data, caps=caps))
    return recipe if saved is None else _extended(recipe, saved.get("optimization", {}))


def end_of_decay(saved: Mapping[str, Any], num_steps: int) -> int:
    """`decay_steps` of a run that continues to `num_steps`: the step at which its decay ended so far; 0 if it had not
    begun.
    """
    before, end = int(saved.get("num_steps") or 0), int(saved.get("decay_steps") or 0)
    if end or num_steps <= before or before <= int(saved.get("warmup_steps") or 0):
        return end
    return before


def _extended(recipe: _Recipe, saved: Mapping[str, Any]) -> _Recipe:
    optimization, before = recipe.optimization, saved.get("num_steps")
    if not isinstance(before, int):
        return recipe
    if optimization.num_steps < before:
        raise RecipeError(
            f"optimization.num_steps={optimization.num_steps} is less than the {before} of the run in the output "
            "folder; give as many or more, choose another --output-dir, or train with --no-resume to start anew"
        )
    end = end_of_decay(saved, optimization.num_steps)
    if optimization.num_steps > before:
        LOGGER.info(
            "the run had %d steps and continues to %d; its learning rate decays until step %d",
            *(before, optimization.num_steps, end or optimization.num_steps),
        )
    if optimization.decay_steps == 0 and end:
        recipe = replace(recipe, optimization=replace(optimization, decay_steps=end))
    return recipe
