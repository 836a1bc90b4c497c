"""The batches of each trial, out of token tables that all trials share."""

from dataclasses import dataclass

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.data.batching.batches import EpochBatches, eval_packs
from ftray.data.batching.samples import Pack, Samples
from ftray.data.batching.selection import TokenTable, eval_samples, training_samples
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import TokenRows
from ftray.data.tokens.rows import Rows
from ftray.errors import ConfigError
from ftray.train.usage import metric_of


@dataclass(frozen=True)
class Tokens:
    """Where a search's finished tokens are, and where copies of them may lie on this host."""

    train: str
    evals: str | None
    cache: ShardCache


class Tables:
    """The rows that all trials read; what is found out of them is found once for each way."""

    def __init__(self, train: TokenTable, evals: TokenTable | None) -> None:
        self.train = train
        self._evals = evals
        self._samples: dict[str, Samples] = {}
        self._packs: dict[str, list[Pack]] = {}

    @classmethod
    def of(cls, tokens: Tokens) -> "Tables":
        """Open the token folders."""
        evals = None if tokens.evals is None else Rows(tokens.evals, tokens.cache)
        return cls(Rows(tokens.train, tokens.cache), evals)

    @property
    def evals(self) -> TokenRows:
        """The rows of the eval packs."""
        return self._evals or self.train

    def samples(self, data: DataConfig) -> Samples:
        """Return what is trained on."""
        key = data.model_dump_json()
        if key not in self._samples:
            self._samples[key] = training_samples(self.train, data)[0]
        return self._samples[key]

    def eval_packs(self, data: DataConfig) -> list[Pack]:
        """Return what is measured; ConfigError where the config names no eval set."""
        key = data.model_dump_json()
        if key not in self._packs:
            self._packs[key] = self._eval_packs(data)
        return self._packs[key]

    def _eval_packs(self, data: DataConfig) -> list[Pack]:
        table = self._evals or self.train
        if self._evals is None and data.eval_fraction is None:
            raise ConfigError("there is nothing to measure", "set data.eval or data.eval_fraction")
        return eval_packs(eval_samples(table.columns, table, data)[0], data)


class Intake:
    """One trial's global batches."""

    def __init__(self, tables: Tables, config: RunConfig) -> None:
        self._sources = len(sources_of(config.data.train))
        self._batches = EpochBatches(tables.samples(config.data), config.data, config.train)
        self.total_steps = self._batches.total_steps

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step is in."""
        return self._batches.epoch_of(step)

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch in their order."""
        return self._batches.packs(step)

    def tokens_by_source(self, packs: list[Pack]) -> dict[str, int]:
        """Count a global batch's tokens by source, as metrics; of a single source nothing."""
        if self._sources == 1:
            return {}
        counts = {metric_of(number): 0 for number in range(self._sources)}
        for sample in (sample for pack in packs for sample in pack):
            counts[metric_of(sample.source)] += sample.length
        return counts
