"""The peer's side: `load_dataset` and `Dataset.map`, in two processes, then packing.

`batched` is the best that we know to do with it: one map over batches of 1000 rows yields ids and
labels. `trl` does what TRL 1.16's SFTTrainer does with `assistant_only_loss` and `packing`: a map
over single rows for ids and assistant masks, a second for labels. Both render a template with
generation tags and pack by best-fit-decreasing within batches of 1000 rows, in Arrow. The packing
is ours, which is quicker than TRL's.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftray.data.batching.packing import pack

Columns = dict[str, Any]
BATCH = 1000  # rows; the default of `map`

# The built-in model's own template, with tags around what the assistant writes
TAGGED = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}\
{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '
' }}{% endfor %}"""


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    disable_progress_bars()
    log = Path(settings["root"]) / "events"
    log.mkdir(parents=True)
    rss = psutil.Process().memory_info().rss
    times = {"imported": time.time()}
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.chat_template = TAGGED
    read = load_dataset(
        "json",
        data_files=settings["files"],
        split="train",
        cache_dir=settings["root"],
        num_proc=2,
    )
    times["read"] = time.time()
    with_labels = _TOKENIZE[settings["how"]](read, tokenizer, str(log))
    times["made"] = time.time()
    packed = with_labels.with_format("arrow").map(
        pack_batch, batched=True, batch_size=BATCH, num_proc=2, fn_kwargs={"max_length": 2048}
    )
    times["packed"] = time.time()
    # before the sample is read, which maps all there is
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    first = packed.with_format("numpy")[:8]
    times["batch"] = time.time()
    answer = {
        "started": psutil.Process().create_time(),
        "times": times,
        "rss_imported": rss,
        "rss_peak": peak,
        "rows": len(with_labels),
        "fill": _tokens(with_labels) / (len(packed) * 2048),
        "tokens": _tokens(with_labels),
        "first": [len(ids) for ids in first["input_ids"]],
        "sample": [
            [row["input_ids"], row["labels"]]
            for row in map(with_labels.__getitem__, settings["sample"])
        ],
        "events": {path.name: _events(path) for path in sorted(log.iterdir())},
    }
    Path(settings["answer"]).write_text(json.dumps(answer))


def _batched(read: Dataset, tokenizer: PreTrainedTokenizerBase, log: str) -> Dataset:
    return read.map(
        tokenize_batch,
        batched=True,
        batch_size=BATCH,
        num_proc=2,
        remove_columns=read.column_names,
        fn_kwargs={"tokenizer": tokenizer, "log": log},
    )


def _trl(read: Dataset, tokenizer: PreTrainedTokenizerBase, log: str) -> Dataset:
    masked = read.map(tokenize_row, num_proc=2, fn_kwargs={"tokenizer": tokenizer, "log": log})
    labelled = masked.map(
        label_row, num_proc=2, fn_kwargs={"log": log}, remove_columns=["assistant_masks"]
    )
    return labelled.select_columns(["input_ids", "labels"])


def tokenize_batch(rows: Columns, tokenizer: PreTrainedTokenizerBase, log: str) -> Columns:
    """Map a batch of conversations to ids and labels."""
    encoded = _encode(rows["messages"], tokenizer)
    ids, masks = encoded["input_ids"], encoded["assistant_masks"]
    labels = [
        [i if learned else -100 for i, learned in zip(*row, strict=True)]
        for row in zip(ids, masks, strict=True)
    ]
    _note(log, "tokenize", len(ids), sum(map(len, ids)))
    return {"input_ids": ids, "labels": labels}


def tokenize_row(row: Columns, tokenizer: PreTrainedTokenizerBase, log: str) -> Columns:
    """Map one conversation to ids and its assistant mask."""
    encoded = _encode(row["messages"], tokenizer)
    _count(log, "tokenize", len(encoded["input_ids"]))
    return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}


def label_row(row: Columns, log: str) -> Columns:
    """Map ids and a mask to labels."""
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    _count(log, "label", len(row["input_ids"]))
    return {"labels": [i if learned else -100 for i, learned in pairs]}


def pack_batch(rows: pa.Table, max_length: int) -> pa.Table:
    """Pack a batch by best-fit-decreasing; rows are cut to `max_length`."""
    columns = [pc.list_slice(rows[name], 0, max_length) for name in ("input_ids", "labels")]
    lengths = pc.list_value_length(columns[0]).to_numpy()
    packs = pack(lengths.tolist(), max_length, np.argsort(-lengths, kind="stable").tolist())
    order = pa.array([row for chosen in packs for row in chosen])
    ends = np.cumsum([0, *(int(lengths[chosen].sum()) for chosen in packs)])
    joined = [pc.list_flatten(pc.take(column, order)).combine_chunks() for column in columns]
    lists = [pa.ListArray.from_arrays(ends.astype(np.int32), values) for values in joined]
    sizes = pa.array([lengths[chosen].tolist() for chosen in packs])
    return pa.table([*lists, sizes], names=["input_ids", "labels", "seq_lengths"])


_TOKENIZE = {"batched": _batched, "trl": _trl}


def _encode(messages: list[Any], tokenizer: PreTrainedTokenizerBase) -> Columns:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return dict(encoded)


_counts: dict[str, list[int]] = {}


def _count(log: str, phase: str, tokens: int) -> None:
    """Note every thousandth row, so that noting costs nothing."""
    count = _counts.setdefault(phase, [0, 0])
    count[0] += 1
    count[1] += tokens
    if count[0] == BATCH:
        _note(log, phase, *count)
        _counts[phase] = [0, 0]


def _note(log: str, phase: str, rows: int, tokens: int) -> None:
    with open(f"{log}/{phase}-{os.getpid()}", "a") as file:
        file.write(f"{time.time()} {rows} {tokens}\n")


def _events(path: Path) -> list[list[float]]:
    return [[float(value) for value in line.split()] for line in path.read_text().splitlines()]


def _row(row: Columns) -> list[list[int]]:
    return [row["input_ids"], row["labels"]]


def _tokens(rows: Dataset) -> int:
    return int(pc.sum(pc.list_value_length(rows.data["input_ids"])).as_py())


if __name__ == "__main__":
    main()
