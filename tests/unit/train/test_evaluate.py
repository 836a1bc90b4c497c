"""Loss, perplexity and exact match of a model, against what can be computed by hand."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ftray.config.data import DataConfig
from ftray.config.run import ModelConfig
from ftray.data.rendering.chat import Renderer
from ftray.data.rendering.examples import Form
from ftray.errors import ConfigError, DataError
from ftray.model.base import load_base, load_tokenizer
from ftray.model.lora import Routing
from ftray.model.loss import LanguageModel
from ftray.registry import AdapterRecord, BaseModel, publish
from ftray.train.evaluate import Answer, EvalResult, measure
from ftray.train.tuned import evaluate

CPU = torch.device("cpu")
CHAT = DataConfig(train="unused.jsonl", format="prompt_completion", max_length=128)
FORM = Form("prompt_completion", {})
TEXT = Form("text", {})
ROWS = [({"prompt": f"say {word}", "completion": word}, FORM) for word in ("a", "bb", "ccc")]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LanguageModel:
    base = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
    return LanguageModel(base, Routing(CPU))


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_folder)


@torch.no_grad()
def losses_by_hand(model: LanguageModel, ids: list[int], trained: bytes) -> list[float]:
    """Each learned token's loss, from the plain logits of its row alone."""
    logits = model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    of_tokens = -logits[:-1].log_softmax(-1)[range(len(ids) - 1), list(ids[1:])]
    return of_tokens[torch.tensor(list(trained[1:]), dtype=torch.bool)].tolist()


@pytest.mark.parametrize("data", [CHAT, CHAT.model_copy(update={"chat_template": "none"})])
def test_loss_and_perplexity_are_means_over_all_learned_tokens(
    data: DataConfig, model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rendered = [one for row in ROWS for one in Renderer(tokenizer, data).render(*row)]
    expected = [loss for row in rendered for loss in losses_by_hand(model, row.ids, row.trained)]
    found = measure(model, tokenizer, ROWS, data)
    assert (found.examples, found.label_tokens) == (3, len(expected))
    assert found.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_answers_are_greedy_and_in_the_order_of_the_rows(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [ROWS[2], ROWS[0], ROWS[1]]  # answered by length of the prompt
    found = measure(model, tokenizer, rows, CHAT)
    assert [answer.expected for answer in found.answers] == ["ccc", "a", "bb"]
    for (row, form), answer in zip(rows, found.answers, strict=True):
        renderer = Renderer(tokenizer, CHAT)
        prompt = renderer.render_prompt(row, form).ids
        [alone] = model.generate([prompt], len(row["completion"]) + 8, renderer.stop_ids)
        said = str(tokenizer.decode(alone))
        assert said.startswith(answer.found) or answer.found.startswith(said)
        assert answer.prompt == tokenizer.decode(prompt)


def test_an_answer_is_exact_apart_from_blanks_around_it() -> None:
    said = [Answer("", "yes", text) for text in (" yes\n", "yes", "Yes", "yes.", "")]
    assert [answer.is_exact for answer in said] == [True, True, False, False, False]
    assert EvalResult(5, 5, 1.0, tuple(said)).exact_match == pytest.approx(0.4)


def test_plain_text_has_a_loss_and_no_answers(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = DataConfig(train="unused.txt", format="text", max_length=128)
    found = measure(model, tokenizer, [({"text": "one two three"}, TEXT)], data)
    assert found.loss > 0
    assert (found.answers, found.exact_match) == ((), None)


def test_no_rows_are_an_error_and_not_a_perfect_score(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match="no rows"):
        measure(model, tokenizer, [], CHAT)


def test_answers_that_are_cut_off_are_an_error_and_not_a_perfect_score(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match="no row has a token to learn"):
        measure(model, tokenizer, ROWS, CHAT.model_copy(update={"max_length": 8}))


def test_an_evaluation_is_not_changed_by_settings_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    draft = AdapterRecord(
        name="bot",
        kind="adapter",
        base=BaseModel(name="base", revision=None, fingerprint="f"),
        method="lora",
        rank=8,
        tokenizer_digest="t",
        template_digest="c",
    )
    root = str(tmp_path / "root")
    publish(root, tmp_path, draft)
    with pytest.raises(ConfigError, match=r"is not changed by adapter\.rank") as refused:
        evaluate("bot", "x.jsonl", ["data.max_length=64", "adapter.rank=4"], root=root)
    assert "only data" in refused.value.hint
