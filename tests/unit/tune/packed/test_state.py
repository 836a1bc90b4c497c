"""A trial's state, saved and taken up again, by itself or by another trial."""

import pytest
import torch

from ftray.errors import FtrayError


def weights(trainer, name: str) -> torch.Tensor:
    return trainer._slots[name].adapter.weights.detach().clone()


def test_a_trial_goes_on_from_a_saved_state_bit_for_bit(packed, trial_of, tmp_path):
    """Also in another padded place, beside others, and after a detour."""
    trial = trial_of("a", {"adapter.dropout": 0.2, "adapter.rank": 5, "train.weight_decay": 0.1})
    trainer = packed()
    trainer.attach(trial)
    for _ in range(3):
        trainer.step(["a"])
    trainer.save("a", str(tmp_path / "state"))
    expected = [trainer.step(["a"])["a"]["loss"] for _ in range(3)]
    final = weights(trainer, "a")

    again = packed()
    again.attach(trial_of("first in the same stack", {}))
    assert again.attach(trial, str(tmp_path / "state")) == 3
    again.detach("first in the same stack")
    assert [again.step(["a"])["a"]["loss"] for _ in range(3)] == expected
    assert torch.equal(weights(again, "a"), final)


def test_a_state_is_saved_again_into_the_same_folder(packed, trial_of, tmp_path):
    trainer, folder = packed(), str(tmp_path / "state")
    trainer.attach(trial_of("a", {}))
    for _ in range(2):
        trainer.step(["a"])
        trainer.save("a", folder)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["adapter-000002.safetensors", "moments-000002.safetensors", "record.json"]
    other = packed()
    assert other.attach(trial_of("b", {}), folder) == 2


def test_a_damaged_state_is_refused_and_leaves_no_slot_behind(packed, trial_of, tmp_path):
    trainer, folder = packed(slots=1), tmp_path / "state"
    trainer.attach(trial_of("a", {}))
    trainer.save("a", str(folder))
    trainer.detach("a")
    file = folder / "adapter-000000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FtrayError, match="damaged"):
        trainer.attach(trial_of("b", {}), str(folder))
    assert trainer.attach(trial_of("c", {})) == 0


def test_exploiting_copies_the_donor_and_explores_the_rate(packed, trial_of, tmp_path):
    trainer, names = packed(), ["donor", "weak"]
    trainer.attach(trial_of("donor", {}))
    trainer.attach(trial_of("weak", {"train.learning_rate": 1e-5}))
    for _ in range(2):
        trainer.step(names)
    trainer.save("donor", str(tmp_path / "donor"))
    trainer.detach("weak")
    assert trainer.attach(trial_of("weak", {"train.learning_rate": 5e-4}), str(tmp_path / "donor"))
    assert torch.equal(weights(trainer, "weak"), weights(trainer, "donor"))
    lines = trainer.step(names)
    assert lines["weak"]["loss"] == lines["donor"]["loss"]
    assert lines["weak"]["learning_rate"] == lines["donor"]["learning_rate"] / 2


def test_a_state_of_another_rank_is_refused_by_name(packed, trial_of, tmp_path):
    trainer = packed()
    trainer.attach(trial_of("a", {}))
    trainer.save("a", str(tmp_path / "a"))
    with pytest.raises(FtrayError, match=r"another adapter.rank or adapter.target"):
        trainer.attach(trial_of("b", {"adapter.rank": 4}), str(tmp_path / "a"))


def test_a_rewind_goes_back_to_the_saved_weights_and_on_with_the_next_batch(
    packed, trial_of, tmp_path
):
    trainer = packed()
    trainer.attach(trial_of("a", {"train.on_nan": "rewind"}))
    trainer.step(["a"])
    trainer.save("a", str(tmp_path / "a"))
    kept = weights(trainer, "a")
    with torch.no_grad():
        trainer._slots["a"].adapter.weights[0, 5] = torch.nan
    assert trainer.step(["a"])["a"]["skipped"] == 1
    assert torch.equal(weights(trainer, "a"), kept)
    assert trainer.step(["a"])["a"]["step"] == 3


def test_a_state_is_saved_behind_a_uri(packed, trial_of, tmp_path):
    trainer, folder = packed(), f"memory://{tmp_path.name}/state"
    trainer.attach(trial_of("a", {}))
    trainer.step(["a"])
    trainer.save("a", folder)
    assert trainer.attach(trial_of("b", {}), folder) == 1
    assert torch.equal(weights(trainer, "a"), weights(trainer, "b"))
