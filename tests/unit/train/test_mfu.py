import pytest

from ftray.model.shape import ModelShape
from ftray.train.mfu import flops_per_token, peak_flops


def test_the_longest_matching_device_name_wins() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("some new card") is None
