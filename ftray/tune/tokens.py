"""The tokens of a search: made once, before any host starts, and read by all trials."""

from pathlib import Path

from ftray import storage
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.data.limits import check, quick
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.tune.packed.intake import Tokens


def made_tokens(config: RunConfig, model_folder: Path, root: str) -> Tokens:
    """Make what is missing of the token sets, and check the data's limits."""
    data, trust = config.data, config.model.trust_remote_code
    cache = ShardCache(storage.local_cache(root) / "tokens", int(data.cache_gb * 1e9))
    evals = None
    if eval_sources := sources_of(data.eval):
        job = plan_tokens(eval_sources, data, model_folder, root, trust_remote_code=trust)
        evals = make_all(job)
    job = plan_tokens(sources_of(data.train), data, model_folder, root, trust_remote_code=trust)
    train = make_all(job)
    if data.limits.are_set:
        rows = Rows(train.folder, cache)
        columns = Rows(evals.folder, cache).columns if evals else None
        check(quick(rows.columns, columns, rows, train.bad_rows, data), data.limits)
    return Tokens(train.folder, evals.folder if evals else None, cache)
