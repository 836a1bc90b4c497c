"""Tokens made by Ray Data tasks: the same whatever made them, once, and with errors named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftray.config.data import DataConfig, sources_of
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.manifest import TokenSet
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import DataError, StorageError

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = 300
RANGE_BYTES = 4000  # some 10 ranges: enough to have neighbours, few enough to be quick


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return folder


@pytest.fixture
def make(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., TokenSet]:
    def make_from(path: Path, root: str = "root", **changes: object) -> TokenSet:
        data = {"train": str(path), "format": "prompt_completion", "chat_template": "none"}
        config = DataConfig.model_validate({**data, **changes})
        sources, place = sources_of(config.train), str(tmp_path / root)
        job = plan_tokens(sources, config, tokenizer_folder, place, range_bytes=RANGE_BYTES)
        return make_all(job, RANGE_BYTES)

    return make_from


def lines(*, bad: tuple[int, ...] = ()) -> bytes:
    rows = [{"prompt": f"question {n}", "completion": "answer " * (n % 9 + 1)} for n in range(ROWS)]
    texts = [json.dumps(row) for row in rows]
    for line in bad:
        texts[line - 1] = json.dumps({"question": "?", "answer": "!"})
    return "\n".join(texts).encode()


def shards(tokens: TokenSet) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(tokens.folder).glob("shard-*"))}


def modified(tokens: TokenSet) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(tokens.folder).iterdir()}


def test_the_same_shards_come_from_any_number_of_tasks_and_are_made_once(
    make: Callable[..., TokenSet], tokenizer_folder: Path, tmp_path: Path
):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines())
    made = make(path)
    assert len(shards(made)) > 10
    assert made.rows == ROWS
    before = modified(made)
    assert make(path) == made
    assert modified(made) == before

    other = tmp_path / "elsewhere"
    half = other / "tokens" / made.digest  # another maker came half way: some shards, no manifest
    half.mkdir(parents=True)
    for name, content in list(shards(made).items())[3:12]:
        (half / name).write_bytes(content)
    again = make(path, "elsewhere")
    assert again.digest == made.digest
    assert shards(again) == shards(made)
    rows = Rows(made.folder, ShardCache(tmp_path / "cache", 10**9))
    last = int(rows.columns.key[-1])
    text = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder).decode(rows.ids(last))
    assert text == f"question {ROWS - 1}{'answer ' * 3}<|end|>"
    assert rows.place(last) == f"train.jsonl line {ROWS}"


def test_the_first_bad_row_of_the_file_is_named_by_its_line(
    make: Callable[..., TokenSet], tmp_path: Path
):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(bad=(171, 172, 260)))
    with pytest.raises(DataError) as failed:
        make(path)
    assert failed.value.message == ("train.jsonl line 171: no 'prompt' (found: question, answer)")
    assert failed.value.hint == "set data.columns='{prompt: question, completion: answer}'"


def test_bad_rows_can_be_dropped_and_are_reported(make: Callable[..., TokenSet], tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(bad=(3, 171, 260)))
    made = make(path, on_bad_row="drop")
    assert (made.rows, made.bad_rows) == (ROWS - 3, 3)
    report = json.loads((Path(made.folder) / "report.json").read_text())
    assert report["reasons"] == {"no 'prompt'": 3}
    assert [bad["place"] for bad in report["first"]] == [
        f"train.jsonl line {line}" for line in (3, 171, 260)
    ]


def test_a_root_that_cannot_be_written_is_an_error_of_the_storage(
    make: Callable[..., TokenSet], tmp_path: Path
):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines())
    (tmp_path / "root").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        make(path)


def test_a_data_set_of_bad_rows_alone_is_an_error(make: Callable[..., TokenSet], tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(bad=tuple(range(1, ROWS + 1))))
    with pytest.raises(DataError, match=r"train.jsonl line 1: no 'prompt'"):
        make(path, on_bad_row="drop")
