"""ftray's side: the real pipeline on a local Ray of two CPUs, and the first batch of a stream.

Run by data.py with a file of settings. When each shard was there is told by its own record.
"""

import json
import logging
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import TrainConfig
from ftray.data.batching.batches import EpochBatches
from ftray.data.batching.collation import collate
from ftray.data.batching.samples import samples_of
from ftray.data.batching.stream import StreamBatches
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.demand import Follower, tell
from ftray.data.tokens.manifest import TokenSet, publish_plan
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows

WORKERS = 2
BATCH = 8  # packs


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    times = {"imported": time.time()}
    ray.init(
        "local",
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=500_000_000,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    rss = psutil.Process().memory_info().rss
    times["ray_up"] = time.time()
    data = _data(settings)
    job = _plan(settings, data)
    publish_plan(job.folder, job.plan)
    error_path = f"{settings['root']}/error.json"
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(_make, job, settings["range_bytes"], error_path)
        _first_batch(Rows(job.folder, _cache(settings), Follower(error_path, None)), data)
        times["batch"] = time.time()
        made = making.result()
    times["made"] = time.time()
    rows = Rows(job.folder, _cache(settings))
    samples, _ = samples_of(rows.columns, rows, data)
    batches = EpochBatches(samples, data, TrainConfig(epochs=1, global_batch_size=BATCH))
    packs = sum(len(batches.packs(step)) for step in range(batches.total_steps))
    times["packed"] = time.time()
    # before the sample is read, which maps all there is
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer = {
        "started": psutil.Process().create_time(),
        "times": times,
        "rss_ray_up": rss,
        "rss_peak": peak,
        "rows": made.rows,
        "tokens": made.tokens,
        "fill": int(samples.length.sum()) / (packs * data.max_length),
        "sample": [_row(rows, rows.columns.key[number]) for number in settings["sample"]],
        "events": _events(Path(job.folder)),
    }
    Path(settings["answer"]).write_text(json.dumps(answer))
    ray.shutdown()


def _data(settings: dict[str, Any]) -> DataConfig:
    return DataConfig.model_validate({"train": settings["folder"], "format": "messages"})


def _plan(settings: dict[str, Any], data: DataConfig) -> Job:
    sources, model = sources_of(data.train), Path(settings["model"])
    size = settings["range_bytes"]
    return plan_tokens(sources, data, model, settings["root"], range_bytes=size)


def _make(job: Job, range_bytes: int, error_path: str) -> TokenSet:
    try:
        return make_all(job, range_bytes)
    except Exception as error:
        tell(error_path, error)  # else the first batch is waited for, for ever
        raise


def _first_batch(rows: Rows, data: DataConfig) -> None:
    """Wait for the first global batch of a run that begins while its tokens are being made."""
    batches = StreamBatches(rows, data, TrainConfig(max_steps=100, global_batch_size=BATCH))
    collate(rows, batches.packs(0))


def _cache(settings: dict[str, Any]) -> ShardCache:
    return ShardCache(Path(settings["root"]) / "cache", 2**33)  # not used: the shards are local


def _row(rows: Rows, key: int) -> list[list[int]]:
    """Return a row's ids and labels as the peer has them: -100 where nothing is learned."""
    ids, trained = rows.ids(key), rows.trained(key)
    return [ids.tolist(), [int(i) if t else -100 for i, t in zip(ids, trained, strict=True)]]


def _events(folder: Path) -> list[list[float]]:
    """Return when each shard's record was published, with its rows and tokens."""
    records = [(path, json.loads(path.read_text())) for path in folder.glob("shard-*.json")]
    return [[path.stat().st_mtime, record["rows"], record["tokens"]] for path, record in records]


if __name__ == "__main__":
    main()
