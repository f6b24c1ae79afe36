# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

from openmarigold.repeatability import fix_order_of_sums

_PRODUCTS = """
import openmarigold, torch
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
memory = torch.zeros(1 << 22)
different = 0
for rows, inner, columns in [(2, 16, 32), (3, 1000, 7), (17, 333, 65)]:
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(columns, inner, generator=generator).T
    expected = left @ right
    for offset in range(1, 33):  # four bytes each; files that are mapped to memory lie like this
        moved = memory[offset : offset + rows * inner].view(rows, inner).copy_(left)
        different += int(not torch.equal(moved @ right, expected))
print(different)
"""


def test_the_switch_is_set_and_a_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    fix_order_of_sums()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    fix_order_of_sums()
    assert os.environ["MKL_CBWR"] == "AUTO"


def test_a_product_has_the_same_bits_wherever_its_matrix_lies() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCTS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"]
