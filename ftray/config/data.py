"""The data section: where examples come from, what they look like, and how they become batches."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ftray.config.base import Config

Format = Literal["messages", "sharegpt", "prompt_completion", "instruction", "text"]
# one list of words, so that a mistake is told with the nearest of all of them
Chosen = Literal["auto", "messages", "sharegpt", "prompt_completion", "instruction", "text"]

COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "input", "output"),
    "text": ("text",),
}

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Limit = Annotated[float, Field(ge=0.0, le=1.0)]


class SourceConfig(Config):
    """One source of a mixture: files, or a Hugging Face dataset, and how much of it is used."""

    path: str | None = None
    """A file, a glob or a folder, local or behind a URI; or a dataset that was saved to disk."""
    hub: str | None = None
    """A Hugging Face dataset id, read in place of `path`; or a local folder laid out like one."""
    subset: str | None = None
    """The hub dataset's configuration, where it has several."""
    revision: str | None = None
    """A commit pins the hub dataset for ever; a branch (None: main) may move between runs."""
    split: str = "train"
    """The split of a hub dataset, or of one saved to disk with several."""
    format: Chosen | None = None
    """What its rows hold; null: as `data.format`."""
    columns: dict[str, str] | None = None
    """Our name: theirs; null: as `data.columns`."""
    weight: PositiveFloat | None = None
    """Its share of the rows, against the weights of the others; an epoch's length stays."""
    samples: PositiveInt | None = None
    """Rows of it in each epoch; all are seen before one comes again."""
    epochs: PositiveFloat | None = None
    """How often its rows come in one epoch of the run; 0.5 takes every other row."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return self.hub or self.path or ""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has either path or hub")
        if self.path is not None and (self.subset or self.revision):
            raise ValueError("subset and revision belong to hub datasets")
        if sum(how is not None for how in (self.weight, self.samples, self.epochs)) > 1:
            raise ValueError("set one of weight, samples and epochs")
        return self


Sources = str | SourceConfig | list[str | SourceConfig]


class LimitsConfig(Config):
    """Shares, from 0 to 1, at which bad data fails a run before it trains; null: never."""

    duplicates: Limit | None = None
    """Most rows that may repeat an earlier one exactly."""
    near_duplicates: Limit | None = None
    """Most rows that may nearly repeat another (MinHash); finding them takes a pass over all."""
    overlap: Limit | None = None
    """Most eval rows whose prompt may occur in the training data."""
    bad_rows: Limit | None = None
    """Most rows that `on_bad_row=drop` may leave out."""
    too_long: Limit | None = None
    """Most rows that may be longer than `max_length`, whatever then happens to them."""
    label_share: Limit | None = None
    """Fewest of all tokens that have to be learned."""

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in self.model_dump().values())


class HoldoutConfig(Config):
    """Rows that a run neither trains on nor measures, so that a search ends with an honest number.

    By the prompt's content, as `eval_fraction` does it.
    """

    of: Literal["eval", "train"] = "eval"
    """What they are taken from; of eval, what is trained on stays the same."""
    share: Share = 0.5
    """More of them make the last number surer, and those that the search sees less so."""


class DataConfig(Config):
    """Where the examples are, what they look like, and how they become batches."""

    train: Sources
    """A path, glob, folder or URI, a source with more settings, or a list: JSONL, JSON, Parquet,
    CSV, Arrow or text, also in gzip or zstd."""
    eval: Sources | None = None
    """Examples that are never trained on; without them overfitting goes unseen."""
    eval_fraction: Share | None = None
    """Set this share of `train` aside as eval: by the prompt's content, so no reordering moves it,
    and rows with one prompt stay together."""
    holdout: HoldoutConfig | None = None
    """Set rows aside for the end of a search; `ftray tune` sets it, and measures its best on it."""
    format: Chosen = "auto"
    """What a row holds; auto: told by the columns. All but text are rendered as chat."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name: theirs, as in {prompt: question, completion: answer}."""
    chat_template: str = "model"
    """model: the base's own; none: raw text; a path: a Jinja file for a base that has none."""
    reasoning: Literal["keep", "mask"] = "keep"
    """mask: the model reads the reasoning before an answer but is not trained to write it."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens of a row or pack. Activation memory grows with it."""
    overflow: Literal["truncate", "split", "drop", "error"] = "truncate"
    """Longer rows: cut off, cut into several, left out, or refused; each is counted."""
    packing: bool = True
    """Put several rows in one sequence: no padding, but the global batch then counts packs."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: train on the first of equal rows; near: and of similar ones (MinHash)."""
    on_bad_row: Literal["fail", "drop"] = "fail"
    """drop leaves bad rows out and reports them."""
    limits: LimitsConfig = LimitsConfig()
    keep_shards: bool = True
    """false: token shards are deleted when trained on, so disk holds only `shards_ahead`."""
    shards_ahead: Annotated[int, Field(ge=2)] = 64
    """Without `keep_shards`: shards of a million tokens made ahead of the trainer."""
    cache_gb: PositiveFloat = 50.0
    """Local copies of token shards that lie in an object store: most disk they may take."""

    @field_validator("train", "eval")
    @classmethod
    def _some_source(cls, sources: Sources | None) -> Sources | None:
        named = [bool(one.name) for one in sources_of(sources)]
        if sources is not None and not (named and all(named)):
            raise ValueError("expected a path, a source, or a list of them")
        return sources

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        _check_columns(self.format, self.columns)
        for source in [*sources_of(self.train), *sources_of(self.eval)]:
            _check_columns(source.format or self.format, source.columns or {})
        return self

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        weighted = [source.weight is not None for source in sources_of(self.train)]
        if any(weighted) and not all(weighted):
            raise ValueError("give every source of train a weight, or none")
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError("set eval or eval_fraction, not both")
        has_eval = self.eval is not None or self.eval_fraction is not None
        if self.holdout is not None and self.holdout.of == "eval" and not has_eval:
            raise ValueError("holdout.of=eval needs eval or eval_fraction: set holdout.of=train")
        if any(one.weight or one.samples or one.epochs for one in sources_of(self.eval)):
            raise ValueError("eval takes no weight, samples or epochs: all its rows are measured")
        if not self.keep_shards and self.duplicates != "keep":
            raise ValueError("duplicates are found among all rows: set keep_shards: true")
        return self


def sources_of(sources: Sources | None) -> list[SourceConfig]:
    """Return one source or several, paths or trees, as a list."""
    several = sources if isinstance(sources, list) else [] if sources is None else [sources]
    return [SourceConfig(path=one) if isinstance(one, str) else one for one in several]


def _check_columns(chosen: str, columns: dict[str, str]) -> None:
    known = [name for form, names in COLUMNS.items() if chosen in ("auto", form) for name in names]
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ValueError(
            f"columns maps our names to theirs, and format '{chosen}' knows "
            f"{', '.join(dict.fromkeys(known))}; found {', '.join(unknown)}"
        )
