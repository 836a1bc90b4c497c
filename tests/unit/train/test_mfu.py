import pytest
import torch

from ftray.model.shape import BUILTIN_SHAPE
from ftray.train.mfu import Speed, peak_flops


def test_the_longest_matching_device_name_wins() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("some new card") is None


def test_a_cpu_has_no_mfu() -> None:
    speed = Speed.of(BUILTIN_SHAPE, torch.device("cpu"), 128, frozen_base=True)
    assert speed.mfu(1000.0) is None


def test_mfu_is_the_share_of_the_peak() -> None:
    assert Speed(flops_per_token=2e9, peak=1e12).mfu(250.0) == pytest.approx(0.5)
