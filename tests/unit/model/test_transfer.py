import torch

from ftray.model.transfer import kept_on_host, to_device

CPU = torch.device("cpu")


def test_what_is_on_the_device_is_not_copied() -> None:
    numbers = torch.arange(6.0)
    assert to_device(numbers, CPU).data_ptr() == numbers.data_ptr()


def test_a_table_that_is_kept_on_the_host_has_the_same_values_in_memory_of_its_own() -> None:
    table = torch.randn(5, 8, dtype=torch.bfloat16)
    kept = kept_on_host(table, CPU)
    assert kept.dtype == table.dtype
    assert torch.equal(kept, table)
    assert kept.data_ptr() != table.data_ptr()
