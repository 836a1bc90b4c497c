import math

import torch

from ftray.train.gauges import Gauges, shown


def test_numbers_that_are_none_leave_the_last_one_on_show():
    line = {"step": 4, "loss": math.nan, "mfu": None, "grad_norm": math.inf, "tokens": 9}
    assert dict(shown(line | {"step_seconds": 0.5})) == {"step": 4.0, "step_seconds": 0.5}
    assert dict(shown({"step": 4, "eval_loss": 2.0, "samples": "text"})) == {
        "step": 4.0,
        "eval_loss": 2.0,
    }


def test_a_run_outside_of_ray_is_no_worse_for_its_gauges():
    gauges = Gauges("bot", 10, 0, torch.device("cpu"))
    gauges.write({"step": 1, "loss": 2.0})
    gauges.flush()
    gauges.close()
