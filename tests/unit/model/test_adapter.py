"""What attaching an adapter does to a model, and its weights out and in."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from ftray.config.run import FullConfig, LoraConfig, ModelConfig, QloraConfig
from ftray.errors import ModelError
from ftray.model.adapter import Attached, adapter_state, attach, load_adapter_state, lora_layers
from ftray.model.base import load_base
from ftray.model.lora import StackedLoraLinear
from ftray.model.loss import LanguageModel
from ftray.model.nf4 import Nf4Linear

CPU = torch.device("cpu")
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def attached(folder, adapter, seed: int = 0) -> Attached:
    return attach(load_base(folder, ModelConfig(), CPU), adapter, seed)


def test_all_linear_means_every_linear_layer_but_the_output_embedding(tiny_folder):
    names = [layer.name for layer in lora_layers(attached(tiny_folder, LoraConfig(rank=2)).model)]

    assert len(names) == 2 * len(ALL)
    assert {name.rpartition(".")[2] for name in names} == ALL


def test_only_the_adapter_is_trained(tiny_folder):
    trainable = attached(tiny_folder, LoraConfig(rank=2, target=["q_proj"])).trainable

    assert sorted(trainable) == [
        f"model.layers.{layer}.self_attn.q_proj.lora_{part}" for layer in (0, 1) for part in "AB"
    ]
    assert {parameter.dtype for parameter in trainable.values()} == {torch.float32}


def test_full_fine_tuning_trains_every_weight_once(tiny_folder):
    full = attached(tiny_folder, FullConfig())

    assert len(full.trainable) == len(list(full.model.parameters()))
    assert "lm_head.weight" not in full.trainable  # tied to the input embedding


@pytest.mark.parametrize("target", ["all-linear", ["q_proj"]])
def test_qlora_keeps_every_linear_layer_in_four_bits(tiny_folder, target):
    model = attached(tiny_folder, QloraConfig(rank=2, target=target)).model

    assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == 2 * len(ALL)
    plain = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert plain == ["lm_head"]


def test_an_unknown_target_names_the_layers_that_exist(tiny_folder):
    with pytest.raises(ModelError, match=r"no linear layer is called 'q_projj'") as caught:
        attached(tiny_folder, LoraConfig(target=["v_proj", "q_projj"]))
    assert "did you mean 'q_proj'?" in caught.value.hint

    with pytest.raises(ModelError) as caught:
        attached(tiny_folder, LoraConfig(target=["wq"]))
    assert "down_proj, gate_proj" in caught.value.hint


def test_the_start_is_the_same_for_the_same_seed(tiny_folder):
    states = [
        adapter_state(attached(tiny_folder, LoraConfig(rank=2), seed).model) for seed in (0, 0, 1)
    ]

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_state_has_pefts_names_and_comes_back(tiny_folder):
    one, other = (attached(tiny_folder, LoraConfig(rank=2), seed).model for seed in (0, 1))
    state = adapter_state(one)

    load_adapter_state(other, state)

    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in state
    again = adapter_state(other)
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_an_eval_between_two_qlora_steps_changes_neither_loss_nor_gradient(tiny_folder):
    qlora = attached(tiny_folder, QloraConfig(rank=2))
    model = LanguageModel(qlora.model, qlora.routing)
    ids = torch.arange(3, 35)[None]
    labels, positions = ids.roll(-1, 1), torch.arange(32)[None]

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.train()
        loss = model(ids, labels, positions)
        return loss, list(torch.autograd.grad(loss, list(qlora.trainable.values())))

    loss, gradients = step()
    with torch.no_grad():
        model.eval()(ids, labels, positions)
    loss_after, gradients_after = step()

    assert torch.equal(loss, loss_after)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_after, strict=True))
    assert any(gradient.any() for gradient in gradients)


@pytest.fixture
def lone_worker(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "adapter", [LoraConfig(rank=2), QloraConfig(rank=2)], ids=["lora", "qlora"]
)
@pytest.mark.usefixtures("lone_worker")
def test_sharded_models_give_and_take_the_same_state(tiny_folder, adapter):
    ids = torch.arange(3, 35)[None]
    batch = (ids, ids.roll(-1, 1), torch.arange(32)[None])
    whole, sharded = attached(tiny_folder, adapter), attached(tiny_folder, adapter)
    models = [LanguageModel(one.model, one.routing) for one in (whole, sharded)]
    for layer in [*models[1].layers, models[1]]:
        fully_shard(layer)

    losses = [model(*batch) for model in models]
    for loss in losses:
        loss.backward()
    changed = {name: values + 1 for name, values in adapter_state(whole.model).items()}
    load_adapter_state(sharded.model, changed)

    torch.testing.assert_close(*losses)
    found = adapter_state(sharded.model)
    assert all(torch.equal(found[name], changed[name]) for name in changed)


def test_deep_models_keep_their_layers_names(tiny_folder):
    model = attached(tiny_folder, LoraConfig(rank=2)).model

    for name, module in model.named_modules():
        if isinstance(module, StackedLoraLinear):
            assert module.name == name
