import torch

from ftray.model.transfer import to_device

CPU = torch.device("cpu")


def test_what_is_on_the_device_is_not_copied() -> None:
    numbers = torch.arange(6.0)
    assert to_device(numbers, CPU).data_ptr() == numbers.data_ptr()
