"""The language model as training sees it: token ids in, summed loss out, logits never held."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ftray.config.run import ActivationPolicy
from ftray.errors import ModelError
from ftray.model.activations import keep_activations
from ftray.model.attention import DOCUMENTS, documents_of, set_attention
from ftray.model.base import decoder, decoder_layers, output_layer
from ftray.model.entropy import Owners, linear_cross_entropy
from ftray.model.lora import Routing
from ftray.model.offload import HostStates
from ftray.model.thin import JOINED
from ftray.model.transfer import to_device

IGNORED = -100


class LanguageModel(nn.Module):
    """A causal language model whose forward pass is the loss of packed sequences."""

    def __init__(self, model: PreTrainedModel, routing: Routing) -> None:
        super().__init__()
        self.model, self.routing = model, routing
        self.is_compiled = False
        self._host: HostStates | None = None

    def keep(self, policy: ActivationPolicy, *, compiled: bool) -> None:
        """Have layers keep for the backward pass what a policy says; say it once, before it runs.

        Compiled, layers and loss become fused kernels at the first pass of each shape.
        """
        keep_activations(self.layers, policy, compiled=compiled)
        if policy == "offload":
            self._host = HostStates(self.routing.row_seeds.device)
        self.is_compiled = compiled
        if compiled:
            for layer in self.layers:
                layer.compile(options=JOINED)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return decoder_layers(self.model)

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Sum the cross-entropy over all positions [batch, seq] with a label.

        Labels are already shifted: position t holds the token that follows it, or -100. A batch
        without labels gives a 0 whose gradient is 0, so that collectives stay in step. Labels and
        positions may be on the CPU: then a GPU is not waited for to count them.
        """
        shape = torch.Size([*input_ids.shape, output_layer(self.model).in_features])
        with self._host.keeping(shape) if self._host else nullcontext():
            hidden = decoder_states(self.model, input_ids, position_ids)
        return self.loss_of(hidden, labels)

    def loss_of(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of `forward`, from the decoder's states [batch, seq, hidden]."""
        found, head = _Labelled.of(hidden, labels), output_layer(self.model)
        return linear_cross_entropy(
            found.states, head.weight, head.bias, found.labels, compiled=self.is_compiled
        )

    def check(self, dtype: torch.dtype) -> None:
        """Do what `check` does, in eager mode; of a sharded model all workers must do it together.

        It is a method because FSDP2 gathers weights around methods of what it shards.
        """
        with torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext():
            check(self.model, dtype)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: Sequence[int],
        *,
        in_step: bool = False,
    ) -> list[list[int]]:
        """Continue each prompt greedily; the end token is left out.

        With `in_step` all workers make the same number of forward passes, as sharded models need.
        """
        if not prompts:
            return []
        if self.is_compiled:  # each length would be compiled anew
            with torch.compiler.set_stance("force_eager"):
                return self._generated(prompts, max_new_tokens, eos_ids, in_step=in_step)
        return self._generated(prompts, max_new_tokens, eos_ids, in_step=in_step)

    def _generated(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: Sequence[int],
        *,
        in_step: bool,
    ) -> list[list[int]]:
        was_training, length = self.training, max(map(len, prompts))
        attention = self.model.config._attn_implementation
        if attention == DOCUMENTS:  # it takes no mask
            set_attention(self.model, "sdpa")
        pad = eos_ids[0] if eos_ids else 0
        ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.model.device
        self.eval()
        out: Tensor = self.model.generate(  # type: ignore[operator]  # transformers' own typing
            input_ids=torch.tensor(ids, device=device),  # [prompts, length]
            attention_mask=torch.tensor(mask, device=device),
            generation_config=_greedy(max_new_tokens, eos_ids, pad),
            synced_gpus=in_step,
        )
        self.train(was_training)
        set_attention(self.model, attention)
        return [_until(tokens, set(eos_ids)) for tokens in out[:, length:].tolist()]


def owned_losses(model: PreTrainedModel, hidden: Tensor, labels: Tensor, owners: Owners) -> Tensor:
    """Sum the cross-entropy as a LanguageModel does, of each owner's sequences apart. [owners]

    Labels [batch, seq] and owners [batch] may be on the CPU: then a GPU is not waited for to count
    the labels.
    """
    found, head = _Labelled.of(hidden, labels), output_layer(model)
    whose = to_device(owners.of_rows[found.positions // labels.shape[1]], hidden.device)
    owned = Owners(whose, owners.count)
    return linear_cross_entropy(found.states, head.weight, head.bias, found.labels, owned)


@dataclass(frozen=True)
class _Labelled:
    """The positions of a batch with a label, as numbers where labels are; labels and states."""

    positions: Tensor  # [n]
    labels: Tensor  # [n]
    states: Tensor  # [n, hidden]

    @classmethod
    def of(cls, hidden: Tensor, labels: Tensor) -> "_Labelled":
        flat, device = labels.flatten(), hidden.device
        chosen = (flat != IGNORED).nonzero().squeeze(1)
        states = hidden.flatten(0, 1).index_select(0, to_device(chosen, device))
        return cls(chosen, to_device(flat[chosen], device), states)


@torch.no_grad()
def check(model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    """Try a base model on 16 tokens, computing in `dtype`: refuse it if its loss would be wrong.

    Packed sequences must not see one another, and logits must be the output layer of the hidden
    states and nothing more.
    """
    was_training, device = model.training, model.device.type
    room = _Room.of(dtype or model.dtype, len(decoder_layers(model)))
    model.eval()
    vocabulary = len(output_layer(model).weight)
    ids = torch.arange(11, 11 + 37 * 16, 37, device=model.device)[None] % vocabulary  # [1, 16]
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    beside_others = torch.cat([(ids[:, :8] + 1) % vocabulary, ids[:, 8:]], 1)
    with torch.autocast(device, dtype, enabled=dtype not in (None, model.dtype)):
        packed = decoder_states(model, ids, positions)
        other = decoder_states(model, beside_others, positions)
        alone = decoder_states(model, ids[:, 8:], positions[:, 8:])
        apart = documents_of(model, positions)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False, **apart).logits
        expected = output_layer(model)(packed)
    model.train(was_training)
    sees = _differ(packed[:, 8:], other[:, 8:], room.same)
    if sees or _differ(packed[:, 8:], alone, room.alike):
        raise ModelError(
            f"{type(model).__name__}: packed sequences would see one another in its layers",
            "choose a base with plain attention, such as Llama, Qwen, Mistral or SmolLM",
        )
    if _differ(logits, expected, room.same):
        raise ModelError(
            f"{type(model).__name__} transforms its logits after the output layer (scaling or"
            " soft-capping): not supported",
            "choose another base, such as Llama, Qwen, Mistral or SmolLM",
        )


def decoder_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return hidden states [batch, seq, hidden] of sequences that do not see one another.

    transformers separates packed sequences only when position ids restart at each, no mask is
    given and no cache is made; any mask, or its default cache, lets them attend across silently.
    """
    apart = documents_of(model, position_ids)
    return told_states(model, input_ids, to_device(position_ids, input_ids.device), apart)


def told_states(
    model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, apart: dict[str, Any]
) -> Tensor:
    """The same, of tensors on the model's device, where its attention is told what is apart."""
    states: Tensor = decoder(model)(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=None,
        use_cache=False,
        **apart,
    ).last_hidden_state
    return states


@dataclass(frozen=True)
class _Room:
    """By how much, relative, states may differ for rounding alone; a leak is some tenths or more.

    `same`: from as many rows. `alike`: from fewer; in bf16, layers that amplify as those of a new
    model of 70B do come to 0.03 then (32 of them) and 0.09 (80).
    """

    same: float
    alike: float

    @classmethod
    def of(cls, dtype: torch.dtype, layers: int) -> "_Room":
        if dtype == torch.float32:
            return cls(1e-3, 1e-3)
        return cls(5e-2, 5e-2 * max(1.0, layers / 20))


def _differ(found: Tensor, expected: Tensor, room: float) -> bool:
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() > room * expected.norm())


def _greedy(max_new_tokens: int, eos_ids: Sequence[int], pad: int) -> GenerationConfig:
    """The likeliest token each time: what is left out would come from the model's own settings."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=pad,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
    )


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]
