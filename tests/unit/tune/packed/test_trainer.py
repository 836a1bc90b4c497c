"""Packing changes speed, not results."""

import pytest
import torch

from ftray.data.batching.batches import eval_packs
from ftray.data.batching.selection import eval_samples
from ftray.errors import ConfigError, FtrayError
from ftray.train.parallel import Place
from ftray.train.step import eval_loss, micro_batch
from ftray.tune.packed.intake import Tables
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial, TrialError
from tests.unit.tune.packed.conftest import CPU, TRAIN

# Rates are such as one would use. At ten times the highest, a run alone differs by 6e-6 from itself
# with other micro-batches.
KINDS = {
    "plain": {},
    "rank 4, few targets": {
        "adapter.rank": 4,
        "adapter.target": ["q_proj", "v_proj"],
        "train.learning_rate": 3e-3,
        "train.schedule": "linear",
        "train.warmup_steps": 3,
    },
    "rank 16, no packing": {
        "adapter.rank": 16,
        "adapter.alpha": 20,
        "data.packing": False,
        "train.global_batch_size": 6,
        "train.seed": 3,
    },
    "rank 32, decay": {
        "adapter.rank": 32,
        "adapter.rslora": True,
        "train.weight_decay": 0.3,
        "train.betas": [0.8, 0.95],
        "train.schedule": "constant",
        "train.max_grad_norm": 0.2,
    },
    "dropout": {"adapter.dropout": 0.3, "adapter.rank": 4, "train.seed": 7},
    "other dropout": {"adapter.dropout": 0.1, "train.epochs": 2, "data.max_length": 48},
    "unclipped, small batch": {
        "train.max_grad_norm": None,
        "train.global_batch_size": 1,
        "adapter.target": ["v_proj", "q_proj"],
    },
}
COMPARED = ("loss", "grad_norm")


def check_same(lines, expected):
    for line, alone in zip(lines, expected, strict=True):
        assert {key: line[key] for key in alone if key not in COMPARED} == {
            key: alone[key] for key in alone if key not in COMPARED
        }
        for key in COMPARED:
            assert line[key] == pytest.approx(alone[key], rel=1e-5), (key, line["step"])


# Over a base of 4 bits the kinds that differ in what a trial asks of it: ranks, targets, dropout.
OVER_4_BITS = ("plain", "rank 4, few targets", "rank 16, no packing", "dropout")


@pytest.mark.parametrize(
    ("method", "kinds", "steps"), [("lora", (*KINDS,), 12), ("qlora", OVER_4_BITS, 4)]
)
def test_each_packed_trial_has_the_curve_of_its_run_alone(
    packed, trial_of, alone, method, kinds, steps
):
    """Trials of many kinds, which come in one after the other and leave in the middle."""
    trainer, lines = packed({"adapter.method": method}), {name: [] for name in kinds}
    trials = {name: trial_of(name, {"adapter.method": method} | KINDS[name]) for name in kinds}
    waiting, present = list(kinds), []
    while waiting or present:
        if waiting:
            present.append(waiting.pop(0))
            assert trainer.attach(trials[present[-1]]) == 0
        for name, line in trainer.step(present).items():
            lines[name].append(line)
        for name in [n for n in present if len(lines[n]) == min(steps, trainer.total_steps(n))]:
            present.remove(name)
            trainer.detach(name)
    for name, trial in trials.items():
        run = alone(trial.config)
        check_same(lines[name], [run.step(step) for step in range(len(lines[name]))])


def test_small_micro_batches_give_the_same_curve(packed, trial_of):
    curves = []
    for tokens in (4096, 64):
        trainer = packed(tokens=tokens)
        for name, changes in KINDS.items():
            trainer.attach(trial_of(name, changes))
        curves.append([trainer.step(list(KINDS)) for _ in range(3)])
    for whole, cut in zip(*curves, strict=True):
        for name in KINDS:
            assert cut[name]["loss"] == pytest.approx(whole[name]["loss"], rel=1e-5)
            assert cut[name]["label_tokens"] == whole[name]["label_tokens"]


def test_an_evaluation_measures_each_trial_as_its_run_alone_would(packed, trial_of, alone):
    names, trainer = ["plain", "rank 16, no packing", "dropout"], packed()
    for name in names:
        trainer.attach(trial_of(name, KINDS[name]))
    for _ in range(3):
        trainer.step(names)
    found = trainer.evaluate(names)
    for name in names:
        run = alone(trial_of(name, KINDS[name]).config)
        for step in range(3):
            run.step(step)
        assert found[name]["eval_loss"] == pytest.approx(run.evaluate(), rel=1e-5)
        assert found[name]["step"] == 3


def weights(trainer, name: str) -> torch.Tensor:
    return trainer._slots[name].adapter.weights.detach().clone()


@pytest.mark.parametrize(("on_nan", "steps"), [("stop", 1), ("skip", 3)])
def test_a_trial_whose_loss_is_no_number_leaves_the_others_bit_equal(
    packed, trial_of, on_nan, steps
):
    # one that stops has another batch than it would have from then on
    names = ["first", "broken", "other rank"]
    changes = {"other rank": {"adapter.rank": 16}, "broken": {"train.on_nan": on_nan}}

    def others(*, is_broken: bool):
        trainer = packed()
        for name in names:
            trainer.attach(trial_of(name, changes.get(name, {})))
        trainer.step(names)
        if is_broken:
            with torch.no_grad():
                trainer._slots["broken"].adapter.weights[0, 5] = torch.nan
        found = [trainer.step(names) for _ in range(steps)]
        lines = [{name: one[name]["loss"] for name in ("first", "other rank")} for one in found]
        return [
            found[0]["broken"],
            lines,
            weights(trainer, "first"),
            weights(trainer, "other rank"),
        ]

    _, lines, *kept = others(is_broken=False)
    outcome, lines_beside, *beside = others(is_broken=True)
    assert lines == lines_beside
    assert all(torch.equal(one, other) for one, other in zip(kept, beside, strict=True))
    if on_nan == "stop":
        assert isinstance(outcome, TrialError)
        assert "the loss became nan at step 2" in outcome.message
    else:
        assert outcome["skipped"] == 1
        assert "loss" not in outcome


def test_a_trial_whose_rate_has_no_float_fails_alone(packed, trial_of):
    trainer, names = packed(), ["sound", "absurd"]
    trainer.attach(trial_of("sound", {}))
    trainer.attach(trial_of("absurd", {"train.learning_rate": 1e39}))
    found = trainer.step(names)
    assert isinstance(found["absurd"], TrialError)
    assert found["sound"]["step"] == 1


@pytest.mark.parametrize("policy", ["pointwise", "mlp", "offload"])
def test_shared_bases_keep_activations_or_layers_inputs_and_nothing_between(
    packed, trial_of, policy
):
    changes = {"train.activation_checkpointing": policy}
    with pytest.raises(ConfigError, match=f"activation_checkpointing={policy} is not supported"):
        packed(changes).attach(trial_of("a", changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.method": "qlora"}, "adapter.method"),
        ({"model.dtype": "bfloat16"}, "model.dtype"),
        ({"data.format": "text"}, "data.format"),
        ({"adapter": {"method": "full"}}, "adapter.method"),
        ({"train.optimizer": "adamw_8bit"}, "train.optimizer"),
        ({"adapter.init_from": "other@1"}, "adapter.init_from"),
        ({"adapter.target": ["q_projj"]}, "q_projj"),
    ],
)
def test_a_trial_that_cannot_share_the_base_is_refused_by_key(packed, trial_of, changes, message):
    with pytest.raises(ConfigError, match=message):
        packed().attach(trial_of("a", changes))


def test_a_host_that_is_full_refuses_until_a_slot_is_free(packed, trial_of):
    trainer, late = packed(slots=2), trial_of("late", {})
    for name in ("a", "b"):
        assert trainer.room(late)
        trainer.attach(trial_of(name, {}))
    assert not trainer.room(late)
    with pytest.raises(FtrayError, match="no room beside 2 trials"):
        trainer.attach(late)
    trainer.detach("a")
    assert trainer.attach(late) == 0


def test_a_trial_that_is_through_says_so_and_does_not_stop_the_others(packed, trial_of):
    trainer = packed()
    trainer.attach(trial_of("short", {"train.max_steps": 1}))
    trainer.attach(trial_of("long", {}))
    trainer.step(["short", "long"])
    found = trainer.step(["short", "long"])
    assert isinstance(found["short"], TrialError)
    assert found["long"]["step"] == 2
    assert trainer.total_steps("short") == 1


def limited(trainer, tokens: int) -> list[int]:
    """Let the base have memory for so many tokens at once only; returns what it has had."""
    seen: list[int] = []

    def fail_above(_module, args):
        seen.append(args[0].shape[:-1].numel())
        if seen[-1] > tokens:
            raise torch.OutOfMemoryError("no memory")

    linear = next(
        module for name, module in trainer._passes._model.named_modules() if name.endswith(".base")
    )
    linear.register_forward_pre_hook(fail_above)
    return seen


def test_a_step_without_memory_is_taken_in_smaller_micro_batches(packed, trial_of):
    def lines(most: int):
        trainer = packed(tokens=2048)
        for name in KINDS:
            trainer.attach(trial_of(name, KINDS[name]))
        seen = limited(trainer, most)
        return [trainer.step(list(KINDS)) for _ in range(2)], seen

    (whole, _), (cut, seen) = lines(2**30), lines(100)
    assert max(seen[-3:]) <= 100
    for before, after in zip(whole, cut, strict=True):
        for name in KINDS:
            assert after[name]["loss"] == pytest.approx(before[name]["loss"], rel=1e-5)


def test_a_trial_that_alone_has_no_memory_fails_alone(packed, trial_of):
    trainer, names = packed(), ["short rows", "long rows"]
    trainer.attach(trial_of("short rows", {"data.max_length": 16}))
    trainer.attach(trial_of("long rows", {"data.max_length": 64}))
    limited(trainer, 20)
    found = trainer.step(names)
    assert isinstance(found["long rows"], TrialError)
    assert "out of memory" in found["long rows"].message
    assert found["short rows"]["step"] == 1


@pytest.mark.parametrize(
    "changes", [{"train.activation_checkpointing": "layer"}, {"model.dtype": "bfloat16"}]
)
def test_a_host_computes_as_the_base_says(packed, trial_of, alone, changes):
    trainer, names = packed(changes), ["plain", "rank 16, no packing", "dropout"]
    for name in names:
        trainer.attach(trial_of(name, changes | KINDS[name]))
    lines = [trainer.step(names) for _ in range(3)]
    room = 1e-5 if "model.dtype" not in changes else 5e-3  # 8 bits
    for name in names:
        run = alone(trial_of(name, changes | KINDS[name]).config)
        for step, line in enumerate(lines):
            assert line[name]["loss"] == pytest.approx(run.step(step)["loss"], rel=room)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_what_lies_between_products_may_be_compiled(packed, trial_of):
    def losses(*, compiled: bool) -> list[float]:
        trainer, names = packed({"train.compile": compiled}), ["plain", "rank 16, no packing"]
        for name in names:
            trainer.attach(trial_of(name, KINDS[name]))
        steps = [trainer.step(names) for _ in range(3)]
        trainer.detach(names[0])  # fewer rows: no kernel is made for one number of them
        steps.append(trainer.step(names[1:]))
        return [line["loss"] for step in steps for line in step.values()]

    assert losses(compiled=True) == pytest.approx(losses(compiled=False), rel=1e-5)


def test_rows_set_aside_of_the_training_data_are_measured(tiny_folder, config_of, alone):
    changes = {"data.eval": None, "data.eval_fraction": 0.2}
    config = config_of(changes)
    trainer = PackedTrainer(config, tiny_folder, Tables(TRAIN, None), CPU, Capacity(1, 512))
    trainer.attach(Trial("a", config))
    data = config.data
    packs = eval_packs(eval_samples(TRAIN.columns, TRAIN, data)[0], data)
    work = [micro_batch(TRAIN, packs, [position]) for position in range(len(packs))]
    expected = eval_loss(alone(config).trainee, work, Place(0, 1, CPU))
    assert trainer.evaluate(["a"])["a"]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_without_eval_data_to_evaluate_is_an_error(tiny_folder, config_of):
    config = config_of({"data.eval": None})
    trainer = PackedTrainer(config, tiny_folder, Tables(TRAIN, None), CPU, Capacity(1, 512))
    trainer.attach(Trial("a", config))
    with pytest.raises(ConfigError, match="nothing to measure"):
        trainer.evaluate(["a"])
