from ftray.train.plot import loss_curve


def test_the_loss_curve_is_a_png() -> None:
    lines = [{"step": step, "loss": 3 / step} for step in range(1, 30)]
    lines.append({"step": 20, "eval_loss": 0.4})
    assert loss_curve("tickets", lines).startswith(b"\x89PNG")


def test_a_run_without_steps_still_gives_a_picture() -> None:
    assert loss_curve("tickets", []).startswith(b"\x89PNG")
