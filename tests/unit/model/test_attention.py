"""Attention within documents, beside transformers' own with a mask."""

import pytest
import torch
import torch.nn.functional as F

from ftray.config.run import ModelConfig
from ftray.model.attention import DOCUMENTS, attend, documents_of, set_attention, takes_documents
from ftray.model.base import load_base
from ftray.model.loss import check, decoder_states

CPU = torch.device("cpu")
LENGTHS = (5, 1, 9, 3)


def packed_positions() -> torch.Tensor:
    """Two rows: documents of 5, 1 and 9, and of 9 and 6 tokens."""
    first = torch.cat([torch.arange(n) for n in (5, 1, 9)])
    return torch.stack([first, torch.cat([torch.arange(n) for n in (9, 6)])])


def test_a_document_attends_to_itself_alone_and_backwards_only():
    starts = torch.tensor([0, 5, 6, 15, 18], dtype=torch.int32)
    query, key, value = (torch.randn(18, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    found = attend(query, key, value, starts, 9, 0.25)

    whose = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    mask = (whose[:, None] == whose) & torch.ones(18, 18, dtype=torch.bool).tril()
    parts = [one.transpose(0, 1)[None] for one in (query, key, value)]
    expected = F.scaled_dot_product_attention(*parts, mask, scale=0.25, enable_gqa=True)

    torch.testing.assert_close(found, expected[0].transpose(0, 1))


def test_the_model_attends_to_documents_as_with_a_mask(tiny_folder):
    model = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
    ids = torch.randint(3, 259, (2, 15))
    expected = decoder_states(model, ids, packed_positions())
    assert set_attention(model, DOCUMENTS) == "sdpa"

    torch.testing.assert_close(decoder_states(model, ids, packed_positions()), expected)
    check(model)


def test_gradients_are_those_with_a_mask(tiny_folder):
    gradients = []
    for attention in ("sdpa", DOCUMENTS):
        model = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
        set_attention(model, attention)
        ids = torch.randint(3, 259, (2, 15), generator=torch.Generator().manual_seed(0))
        decoder_states(model, ids, packed_positions()).square().mean().backward()
        gradients.append([p.grad for p in model.model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_rows_of_one_document_need_to_be_told_nothing(tiny_folder):
    model = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
    assert documents_of(model, packed_positions()) == {}  # a mask is made for them
    set_attention(model, DOCUMENTS)
    assert documents_of(model, torch.arange(15).repeat(2, 1)) == {}
    told = documents_of(model, packed_positions())
    assert told["cu_seq_lens_q"].tolist() == [0, 5, 6, 15, 24, 30]
    assert told["max_length_q"] == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_gpu_there_is_no_kernel(tiny_folder, dtype):
    model = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
    assert not takes_documents(model, dtype, 512)
