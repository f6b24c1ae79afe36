# SPDX-License-Identifier: Apache-2.0
"""What is known in meters, as people type it."""

from __future__ import annotations

import re

import pytest

from openmarigold.completion.known import KnownConfig
from openmarigold.errors import InvalidValueError


def test_depths_at_pixels() -> None:
    known = KnownConfig(known_depth=("320,240=2.5", " 10.5 , 20 = 1e1 "))
    assert known.depths == [(320.0, 240.0, 2.5), (10.5, 20.0, 10.0)]


def test_units_become_meters() -> None:
    assert KnownConfig(known_length=("1,2,3,4=8",), unit="ft").lengths == [(1.0, 2.0, 3.0, 4.0, 8 * 0.3048)]
    assert KnownConfig(camera_height=160.0, unit="cm").height_m == pytest.approx(1.6)


def test_records_state_what_was_given() -> None:
    known = KnownConfig(known_depth=("3,4=5",), unit="cm")
    assert known.to_dict() == {"known_depth": ["3,4=5"], "unit": "cm", "measured": "planar", "method": "auto"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is known in meters; give one of --known-depth, --known-length, --camera-height, --points"),
        ({"known_depth": ("320,240",)}, "known_depth='320,240' is not accepted; give X,Y=D, such as 320,240=2.5"),
        ({"known_depth": ("a,b=c",)}, "give X,Y=D"),
        ({"known_depth": ("1,2=-3",)}, "known_depth='1,2=-3': -3 is not accepted; give a number above 0"),
        ({"known_depth": ("1,2=0",)}, "0 is not accepted"),
        ({"known_length": ("1,2,3=4",)}, "give X1,Y1,X2,Y2=L"),
        ({"known_length": ("1,2,1,2=4",)}, "both ends are the same pixel"),
        ({"camera_height": -1.0}, "camera_height=-1.0 is not accepted; give a number above 0"),
        ({"camera_height": 1.6, "known_depth": ("1,2=3",)}, "they may contradict each other: give one kind"),
        ({"camera_height": 1.6, "method": "field"}, "method='field' is for points; camera_height gives a scale alone"),
        ({"known_depth": ("1,2=3",), "depth_scale": 0.0}, "depth_scale=0.0 is not accepted"),
    ],
)
def test_what_is_not_accepted_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        KnownConfig(**given)  # pyright: ignore[reportArgumentType]
