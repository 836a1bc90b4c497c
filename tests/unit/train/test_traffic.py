from typing import Any

import pytest
from rich.console import Console

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig
from ftray.model.shape import BUILTIN_SHAPE
from ftray.screen.plans import plan as shown
from ftray.train.machine import Machine
from ftray.train.memory import GIB, Worker
from ftray.train.plan import make_plan
from ftray.train.traffic import LINKS, Traffic, efficiency, traffic

WEIGHTS = BUILTIN_SHAPE.parameters
LINEAR = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)


def config(**changes: Any) -> RunConfig:
    tree = {"name": "a", "data": {"train": "x.jsonl"}, "train": {"max_steps": 1}}
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return validated(RunConfig, apply(tree, dotted), "test")


def sent(workers: int, accumulation: int = 1, **changes: Any) -> Traffic:
    run = config(scaling__num_workers=workers, train__global_batch_size=64, **changes)
    return traffic(run, BUILTIN_SHAPE, Worker("gpu", workers, None, "a test"), accumulation)


def test_a_replicated_adapter_sums_its_gradients_once_a_step():
    trained = 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    found = sent(4, adapter__rank=8, scaling__strategy="ddp")
    assert found == Traffic(0, 0, 2 * 3 * trained * 4 // 4)
    assert sent(4, accumulation=8, adapter__rank=8, scaling__strategy="ddp") == found


def test_sharded_weights_are_gathered_twice_for_each_micro_batch():
    frozen = sent(4, accumulation=3, scaling__strategy="fsdp")
    assert frozen.gathered == 3 * 2 * 3 * WEIGHTS * 2 // 4
    assert (frozen.scattered, frozen.summed) == (0, sent(4, scaling__strategy="ddp").summed)
    full = sent(4, accumulation=3, adapter={"method": "full"}, scaling__strategy="fsdp")
    assert full == Traffic(frozen.gathered, 3 * 3 * WEIGHTS * 4 // 4, 0)


def test_4_bit_weights_cross_the_network_in_4_bits():
    found = sent(2, adapter={"method": "qlora"}, scaling__strategy="fsdp")
    assert found.gathered == (WEIGHTS - LINEAR) * 2 + LINEAR // 2


def test_more_workers_send_more_but_never_twice_the_gradients():
    totals = [sent(workers, scaling__strategy="ddp").total for workers in (1, 2, 4, 8, 64)]
    assert totals[0] == 0
    assert totals == sorted(totals)
    assert totals[-1] < 2 * totals[1]


def test_efficiency_lies_between_hiding_nothing_and_hiding_all():
    assert efficiency(Traffic(0, 0, 0), 1.0, 1e9) == (1.0, 1.0)
    assert efficiency(Traffic(0, 0, 10**9), 3.0, 1e9) == (0.75, 0.75)  # nothing to hide it behind
    assert efficiency(Traffic(10**9, 0, 0), 4.0, 1e9) == (0.8, 1.0)
    least, most = efficiency(Traffic(2 * 10**9, 2 * 10**9, 10**9), 3.0, 1e9)
    assert (least, most) == pytest.approx((3 / 8, 3 / 5))  # the link is slower than the GPU


@pytest.mark.parametrize(("workers", "is_told"), [(1, False), (4, True)])
def test_a_plan_tells_what_several_workers_send(workers: int, is_told: bool):
    machine = Machine(cpus=16, memory=256 * GIB, gpus=(80 * GIB,) * 4)
    found = make_plan(config(scaling__num_workers=workers), BUILTIN_SHAPE, None, machine)
    console = Console(width=200)
    with console.capture() as text:
        console.print(shown(found))
    assert ("communication" in text.get()) is is_told
    if is_told:
        assert found.traffic == sent(4)
        assert f"{found.traffic.total / LINKS['100GbE'] * 1e3:.2g} ms over 100GbE" in text.get()
    unknown = make_plan(config(scaling__num_workers=workers), None, None, machine)
    assert unknown.traffic is None
