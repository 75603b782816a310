"""NaN and infinity are found in every number format that weights are stored in."""

from __future__ import annotations

import pytest
import torch

from ressa.errors import RessaError
from ressa.model.sound import check_numbers


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_are_told_from_what_is_none(dtype):
    fine = torch.full((6, 5), 7.0).to(dtype)
    others = {"turned": fine.T, "empty": fine[:0], "whole": torch.ones(2, dtype=torch.long)}
    check_numbers("x", [("fine", fine), *others.items()])
    for value in (float("nan"), float("inf"), float("-inf")):
        spoilt = torch.full((6, 5), 7.0)
        spoilt[3, 2] = value
        with pytest.raises(RessaError, match=r"x: worse holds (NaN|infinity) \(1 of its 30 numbers are none\)"):
            check_numbers("x", [("fine", fine), ("worse", spoilt.to(dtype))])
