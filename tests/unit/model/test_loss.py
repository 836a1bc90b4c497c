"""Packed loss, chunked cross-entropy and generation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from ftray.config.run import FullConfig, LoraConfig, ModelConfig
from ftray.errors import ModelError
from ftray.model.adapter import attach
from ftray.model.base import load_base, load_tokenizer
from ftray.model.entropy import linear_cross_entropy
from ftray.model.loss import LanguageModel, check

CPU = torch.device("cpu")
LENGTHS = (5, 9, 2, 16)


def language_model(folder: Path, attention: str = "sdpa", dropout: float = 0.0) -> LanguageModel:
    base = load_base(folder, ModelConfig(name=str(folder), attention=attention), CPU)
    attached = attach(base, LoraConfig(rank=4, dropout=dropout), seed=0)
    for name, parameter in attached.trainable.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return LanguageModel(base, attached.routing)


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 259, (length,), generator=generator) for length in LENGTHS]


def shifted(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([ids[1:], torch.tensor([-100])])


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = sequences()
    positions = torch.cat([torch.arange(len(one)) for one in ids])
    return torch.cat(ids)[None], torch.cat([shifted(one) for one in ids])[None], positions[None]


def sum_of_single_losses(model: LanguageModel) -> float:
    total = 0.0
    for ids in sequences():
        logits = model.model(input_ids=ids[None]).logits[0]
        total += F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
    return total


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_loss_is_the_sum_of_single_losses(tiny_folder, attention, training):
    model = language_model(tiny_folder, attention).train(training)

    loss = model(*packed())

    assert loss.item() == pytest.approx(sum_of_single_losses(model), rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"use_cache": True},
        {"attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.int64)},
        {"position_ids": torch.arange(sum(LENGTHS))[None]},
    ],
    ids=["default cache", "2-D mask", "positions not reset"],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_wrong_call_lets_packed_sequences_see_one_another(tiny_folder, attention, wrong):
    model = language_model(tiny_folder, attention)
    ids, labels, positions = packed()

    call = {"position_ids": positions, "attention_mask": None, "use_cache": False} | wrong
    logits = model.model(input_ids=ids, **call).logits

    loss = F.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum").item()
    assert loss != pytest.approx(sum_of_single_losses(model), rel=1e-3)


@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_cross_entropy_equals_the_plain_one(monkeypatch, with_bias):
    monkeypatch.setattr(
        "ftray.model.entropy._LOGITS_AT_ONCE", 7 * 50
    )  # chunks of 7 rows, the last of 3
    generator = torch.Generator().manual_seed(4)
    shapes = [(24, 16), (50, 16)] + [(50,)] * with_bias
    chunked = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]
    plain = [t.detach().clone().requires_grad_() for t in chunked]
    labels = torch.randint(50, (24,), generator=generator)

    loss = linear_cross_entropy(*chunked, *[None] * (not with_bias), labels)
    expected = F.cross_entropy(F.linear(*plain), labels, reduction="sum")
    (loss / 24).backward()
    (expected / 24).backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(chunked, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_frozen_output_layer_gets_no_gradient():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(10, 8)

    linear_cross_entropy(hidden, weight, None, torch.arange(4)).backward()

    assert hidden.grad.any()
    assert weight.grad is None


def test_bf16_gradients_follow_fp32_ones():
    hidden, weight = torch.randn(32, 16), torch.randn(50, 16)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        h, w = (t.detach().to(dtype).requires_grad_() for t in (hidden, weight))
        linear_cross_entropy(h, w, None, torch.arange(32)).backward()
        assert h.grad.dtype == w.grad.dtype == dtype
        gradients.append((h.grad.float(), w.grad.float()))

    for exact, rounded in zip(*gradients, strict=True):
        assert (exact - rounded).norm() < 2e-2 * exact.norm()


def test_a_batch_without_labels_gives_a_zero_with_zero_gradients(tiny_folder):
    base = load_base(tiny_folder, ModelConfig(), CPU)
    model = LanguageModel(base, attach(base, FullConfig(), seed=0).routing)
    ids, labels, positions = packed()

    loss = model(ids, torch.full_like(labels, -100), positions)
    loss.backward()

    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_tied_embeddings_get_the_gradient_of_both_uses(tiny_folder):
    gradients = []
    for chunked in (True, False):
        base = load_base(tiny_folder, ModelConfig(), CPU)
        model = LanguageModel(base, attach(base, FullConfig(), seed=0).routing)
        ids, labels, positions = packed()
        if chunked:
            loss = model(ids, labels, positions)
        else:
            logits = base(input_ids=ids, position_ids=positions, use_cache=False).logits
            loss = F.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum")
        loss.backward()
        gradients.append(base.get_input_embeddings().weight.grad)

    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo
def test_a_compiled_layer_is_one_graph(tiny_folder):
    model, compiled = language_model(tiny_folder).train(), language_model(tiny_folder).train()
    for layer in compiled.layers:
        layer.compile(backend="aot_eager", fullgraph=True)

    for one in (model, compiled):
        one(*packed()).backward()

    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo
def test_layers_with_dropout_are_compiled_once_however_many_there_are():
    shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 10}
    base = LlamaForCausalLM(LlamaConfig(**shape, **sizes))
    attached = attach(base, LoraConfig(rank=4, dropout=0.1), seed=0)
    model = LanguageModel(base, attached.routing).train()
    counter = CompileCounterWithBackend("eager")
    for layer in model.layers:
        layer.compile(backend=counter)
    ids, labels, positions = packed()
    attached.routing.seed_rows(range(len(ids)))

    model(ids, labels, positions).backward()

    assert counter.frame_count <= 2  # the first one's input needs no gradient


def test_batched_generation_equals_one_by_one_and_keeps_the_mode(tiny_folder):
    model = language_model(tiny_folder, dropout=0.5).train()
    stops = [load_tokenizer(tiny_folder).eos_token_id]
    prompts = [ids.tolist() for ids in sequences()]

    together = model.generate(prompts, 8, stops)

    assert together == [model.generate([prompt], 8, stops)[0] for prompt in prompts]
    assert model.training
    assert all(len(answer) <= 8 and stops[0] not in answer for answer in together)
    assert model.generate([], 8, stops) == []


def test_generation_is_greedy_whatever_the_models_own_settings(tiny_folder):
    plain, own = language_model(tiny_folder), language_model(tiny_folder)
    settings = own.model.generation_config
    settings.do_sample, settings.temperature, settings.top_p = True, 0.6, 0.9
    settings.repetition_penalty, settings.no_repeat_ngram_size = 1.3, 2
    prompts = [ids.tolist() for ids in sequences()]

    assert own.generate(prompts, 16, [2]) == plain.generate(prompts, 16, [2])


def test_generation_stops_at_any_stop_token(tiny_folder):
    model = language_model(tiny_folder)
    prompt = sequences()[3].tolist()
    [free] = model.generate([prompt], 8, [])

    [stopped] = model.generate([prompt], 8, [1, free[3]])

    assert stopped == free[: free.index(free[3])]


def test_a_sound_model_passes_the_check(tiny_folder):
    check(load_base(tiny_folder, ModelConfig(), CPU))
    check(load_base(tiny_folder, ModelConfig(dtype="bfloat16"), CPU))


def test_a_model_that_scales_its_logits_is_refused():
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=4.0,
    )

    with pytest.raises(ModelError, match="transforms its logits after the output layer"):
        check(GraniteForCausalLM(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_attention_looks_across_packed_sequences_is_refused(tiny_folder, dtype):
    base = load_base(tiny_folder, ModelConfig(dtype=dtype), CPU)
    inner = base.model.layers[0].self_attn.forward
    base.model.layers[0].self_attn.forward = lambda *args, **kwargs: inner(
        *args, **{**kwargs, "attention_mask": None}
    )

    with pytest.raises(ModelError, match="packed sequences would see one another"):
        check(base)


def test_a_deep_model_in_bf16_is_not_refused_for_its_rounding():
    """80 layers that amplify as those of a new model of 70B do: alone it differs by 0.09."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.11,
    )

    check(LlamaForCausalLM(config).bfloat16())
