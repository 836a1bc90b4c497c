"""The rows that the end of a search is measured on: where their tokens are, and which they are."""

from dataclasses import dataclass

from ftray import storage
from ftray.config.base import override
from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.data.batching.batches import eval_packs
from ftray.data.batching.samples import Pack, Samples
from ftray.data.batching.selection import eval_samples, holdout_samples
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import DataError
from ftray.model.folder import fetch


@dataclass(frozen=True)
class HeldOut:
    """A hold-out: its token set, the data section that says how to read it, and what it is."""

    tokens: str
    data: DataConfig
    words: str
    cache: ShardCache

    def rows(self) -> Rows:
        """Open the token set."""
        return Rows(self.tokens, self.cache)

    def packs(self, rows: Rows) -> list[Pack]:
        """Return what is measured."""
        return eval_packs(_samples(rows, self.data), self.data)


def held_out(config: RunConfig, search: SearchConfig) -> HeldOut | None:
    """Find a search's hold-out, None where it has none; `config` is what `searched` returned.

    Tokens that are not there yet are made, for which Ray must be connected. Raises DataError where
    no row is left in it: call it before the search to know that then.
    """
    wanted = search.holdout
    if wanted is not None and wanted.path is not None:
        changes = {"data.eval": wanted.path, "data.eval_fraction": None, "data.holdout": None}
        data = override(config, changes).data
        sources, what = sources_of(data.eval), wanted.path
    elif config.data.holdout is not None:
        data = config.data
        of = data.holdout.of if data.holdout is not None else "eval"
        sources = sources_of(data.eval if of == "eval" and data.eval is not None else data.train)
        what = f"{config.data.holdout.share:.0%} of the {_SETS[of]} rows"
    else:
        return None
    root = storage.storage_root(config.storage)
    trust = config.model.trust_remote_code
    folder = fetch(config.model, root)
    made = make_all(plan_tokens(sources, data, folder, root, trust_remote_code=trust))
    cache = ShardCache(storage.local_cache(root) / "tokens", int(data.cache_gb * 1e9))
    found = HeldOut(made.folder, data, what, cache)
    count = len(set(_samples(found.rows(), data).key.tolist()))
    return HeldOut(made.folder, data, f"{what}, {count:,} rows", cache)


_SETS = {"eval": "eval", "train": "training"}


def _samples(rows: Rows, data: DataConfig) -> Samples:
    select = eval_samples if data.holdout is None else holdout_samples
    try:
        return select(rows.columns, rows, data)[0]
    except DataError as error:
        raise DataError(f"the search's holdout: {error.message}", error.hint) from None
