"""Each policy keeps less than the one before it, and none changes a number."""

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM

from ftray.config.base import validated
from ftray.config.run import (
    ActivationPolicy,
    AdapterConfig,
    FullConfig,
    LoraConfig,
    QloraConfig,
    RunConfig,
)
from ftray.errors import ModelError
from ftray.model import offload
from ftray.model.activations import keep_activations
from ftray.model.adapter import attach
from ftray.model.fp8 import Fp8Linear
from ftray.model.loss import LanguageModel
from ftray.model.shape import ModelShape
from ftray.train.memory import Worker, estimate

POLICIES: list[ActivationPolicy] = ["none", "pointwise", "mlp", "layer", "offload"]
LAYERS, HIDDEN, INTERMEDIATE, TOKENS = 6, 128, 448, 128
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.v_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}
METHODS: dict[str, AdapterConfig] = {
    "lora": LoraConfig(rank=4),
    "lora with dropout": LoraConfig(rank=4, dropout=0.2),
    "qlora": QloraConfig(rank=4),
    "full": FullConfig(),
}


def language_model(adapter: AdapterConfig, layers: int = 2, *, fp8: bool = False) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300,
                hidden_size=HIDDEN,
                intermediate_size=INTERMEDIATE,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                use_cache=False,
                initializer_range=0.1,
            )
        )
    if fp8:
        for layer in base.model.layers:
            layer.mlp.up_proj = Fp8Linear(layer.mlp.up_proj)
    attached = attach(base, adapter, seed=0)
    for name, parameter in attached.trainable.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    model = LanguageModel(base, attached.routing).train()
    model.routing.seed_rows([7, 8])
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, each packed from two documents."""
    ids = torch.randint(300, (2, TOKENS // 2), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(40), torch.arange(TOKENS // 2 - 40)]).repeat(2, 1)
    return ids, ids.roll(-1), positions


def learned(model: LanguageModel) -> tuple[float, list[Tensor]]:
    loss = model(*batch())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return loss.item(), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("method", [*METHODS, "lora over fp8"])
def test_gradients_are_the_very_same(method: str, policy: ActivationPolicy) -> None:
    adapter, fp8 = METHODS.get(method, METHODS["lora"]), method == "lora over fp8"
    model = language_model(adapter, fp8=fp8)
    model.keep(policy, compiled=False)
    loss, gradients = learned(model)
    expected, plain = learned(language_model(adapter, fp8=fp8))
    assert loss == expected
    assert len(gradients) == len(plain)
    assert all(torch.equal(*pair) for pair in zip(gradients, plain, strict=True))


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_gradients_are_the_very_same_under_autocast(policy: ActivationPolicy) -> None:
    model = language_model(FullConfig())
    model.keep(policy, compiled=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch())
        expected = (plain := language_model(FullConfig()))(*batch())
    loss.backward()
    expected.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class Living(TorchDispatchMode):
    """Counts the bytes of what was made inside and still lives, but for what is passed over."""

    def __init__(self, passed_over: list[Tensor]) -> None:
        super().__init__()
        self.passed_over = passed_over
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self) -> int:
        over = {tensor.untyped_storage()._cdata for tensor in self.passed_over}
        living = (key for key, (storage, _) in self.made.items() if not storage.expired())
        return sum(self.made[key][1] for key in living if key not in over)


def kept(policy: ActivationPolicy, adapter: AdapterConfig) -> float:
    """Bytes that a layer more leaves on the device after a forward pass."""

    def left(layers: int) -> int:
        model = language_model(adapter, layers)
        model.keep(policy, compiled=False)
        with Living(list(model.state_dict().values())) as living:
            loss = model(*batch())
        living.passed_over += on_host
        found = living.bytes()
        loss.backward()
        return found

    on_host: list[Tensor] = []
    start = offload._Road.start

    def noted(road: offload._Road, into: Tensor, source: Tensor) -> torch.cuda.Event | None:
        on_host.append(into)
        return start(road, into, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload._Road, "start", noted)
        return (left(LAYERS) - left(2)) / (LAYERS - 2)


@pytest.mark.parametrize("method", METHODS)
def test_each_policy_leaves_less_on_the_device_than_the_one_before(method: str) -> None:
    found = [kept(policy, METHODS[method]) for policy in POLICIES]
    assert found == sorted(set(found), reverse=True)
    assert found[-1] == 0


@pytest.mark.parametrize("policy", POLICIES[:-1])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_layer_keeps_is_what_the_plan_counts(method: str, policy: ActivationPolicy) -> None:
    tree = {
        "name": "a",
        "data": {"train": "x.jsonl", "max_length": TOKENS // 2},
        "adapter": METHODS[method].model_dump(),
        "train": {"max_steps": 1, "activation_checkpointing": policy},
    }
    config, cpu = validated(RunConfig, tree, "test"), Worker("cpu", 1, None, "a test")

    def counted(layers: int) -> int:
        shape = ModelShape(layers, HIDDEN, INTERMEDIATE, 4, 2, HIDDEN // 4, 300, False, LINEAR)
        return estimate(config, shape, cpu, 2).activations

    holes = 2  # of the C library's heap
    planned = (counted(LAYERS) - counted(LAYERS - 1)) / holes
    assert kept(policy, METHODS[method]) == pytest.approx(planned, rel=0.1)


def test_a_layer_without_an_mlp_of_that_name_is_told() -> None:
    with pytest.raises(ModelError, match="activation_checkpointing=mlp: Linear has no part of"):
        keep_activations([nn.Linear(2, 2)], "mlp", compiled=False)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_evaluation_computes_nothing_twice(policy: ActivationPolicy) -> None:
    model, calls = language_model(LoraConfig(rank=4)), []
    model.keep(policy, compiled=False)
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        losses = [model(*batch()).item(), model.eval()(*batch()).item()]
    assert losses[0] == losses[1]
    assert len(calls) == 2 * len(model.layers)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
@pytest.mark.parametrize("method", ["lora with dropout", "qlora", "full"])
def test_compiled_layers_compute_the_same_and_keep_less_by_each_policy(method: str) -> None:
    expected, plain = learned(language_model(METHODS[method]))
    found = []
    for policy in POLICIES[:-1]:
        model = language_model(METHODS[method])
        model.keep(policy, compiled=True)
        loss, gradients = learned(model)
        assert loss == pytest.approx(expected, rel=1e-5)
        for ours, theirs in zip(gradients, plain, strict=True):
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()
        own, seen = {p.data_ptr() for p in model.state_dict().values()}, dict[int, int]()

        def note(saved: Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> Tensor:
            if saved.data_ptr() not in own:
                seen[saved.data_ptr()] = saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            model(*batch())
        found.append(sum(seen.values()))
    assert found == sorted(set(found), reverse=True)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_compiled_layers_send_their_inputs_away() -> None:
    expected, plain = learned(language_model(METHODS["qlora"], 4))
    model, sent = language_model(METHODS["qlora"], 4), []
    model.keep("offload", compiled=True)
    start = offload._Road.start

    def noted(road: offload._Road, into: Tensor, source: Tensor) -> torch.cuda.Event | None:
        sent.append(into.shape)
        return start(road, into, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload._Road, "start", noted)
        loss, gradients = learned(model)
    assert loss == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(gradients, plain, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    # of 5 states, the last norm's among them: the newest stays, the one before it is not yet gone
    away, back = 4, 3
    assert sent == [torch.Size([2, TOKENS // 2, HIDDEN])] * (away + back)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_a_compiled_layer_takes_again_what_its_policy_says_and_never_its_last_product() -> None:
    def taken(policy: ActivationPolicy) -> int:
        model = language_model(METHODS["qlora"])
        model.keep(policy, compiled=True)
        model(*batch()).backward()  # compiled here
        with torch.profiler.profile() as seen:
            model(*batch()).backward()
        return {event.key: event.count for event in seen.key_averages()}["ftray::nf4_product"]

    once = taken("none")
    again = [(taken(policy) - once) / 2 for policy in POLICIES[1:]]  # of each layer's seven
    assert again == [0, 2, 6, 6]
