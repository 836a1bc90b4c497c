"""Hugging Face datasets: an id, or a folder laid out like one, to the files of a split.

The files stay where they are: `hf://` URIs are read in ranges like those of any other store, so
nothing is downloaded first. They hold the commit, which pins what is read.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftray import storage
from ftray.config.data import SourceConfig
from ftray.data.reading.blocks import reading
from ftray.errors import DataError, did_you_mean, first_line
from ftray.storage.entry import Entry


def hub_entries(source: SourceConfig) -> list[Entry]:
    """Return the files of a split in the dataset's own order."""
    builder = _load_builder(source)
    splits = _files_of_splits(source, builder)
    if source.split not in splits:
        hint = did_you_mean(source.split, list(splits))
        raise DataError(f"{source.name}: there is no split '{source.split}'", hint)
    with reading(source.name), ThreadPoolExecutor(8) as pool:
        return list(pool.map(storage.entry, splits[source.split]))


def _load_builder(source: SourceConfig) -> Any:
    import datasets  # late: it takes a second, and only hub datasets need it
    from huggingface_hub.errors import HfHubHTTPError

    foreign = (datasets.exceptions.DatasetsError, HfHubHTTPError, OSError, RuntimeError, ValueError)
    try:
        return datasets.load_dataset_builder(source.name, source.subset, revision=source.revision)
    except foreign as error:
        if _is_about_subsets(error):
            names = datasets.get_dataset_config_names(source.name, revision=source.revision)
            raise _no_subset(source, names) from None
        raise DataError(f"{source.name}: {first_line(error)}", _hint(error)) from None


# What `datasets` calls the files that ftray reads, and the settings under which it reads the same.
_BUILDERS: dict[str, Mapping[str, object]] = {
    "arrow": {},
    "csv": {"sep": ",", "column_names": None, "names": None, "header": "infer", "quotechar": '"'},
    "json": {"field": None},
    "parquet": {"columns": None, "filters": None},
    "text": {"sample_by": "line"},
}


def _files_of_splits(source: SourceConfig, builder: Any) -> dict[str, list[str]]:
    """Return the paths or URIs by split; DataError if ftray would read other rows from them."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind == "cache":
        return {name: _cached_files(builder, name) for name in builder.info.splits or ()}
    if kind not in _BUILDERS:
        raise DataError(
            f"{source.name}: a dataset of the kind '{kind}', which ftray does not read",
            f"it reads: {', '.join(_BUILDERS)}; convert it to one of these",
        )
    for name, expected in _BUILDERS[kind].items():
        if (found := vars(builder.config).get(name, expected)) != expected:
            raise DataError(
                f"{source.name}: its card sets {name}={found!r}, which ftray does not support",
                "convert it to Parquet or JSONL",
            )
    files: Mapping[str, Sequence[str]] = builder.config.data_files
    return {str(split): [str(path) for path in paths] for split, paths in files.items()}


def _cached_files(builder: Any, split: str) -> list[str]:
    """Return what `datasets` prepared earlier, and finds when the hub is out of reach."""
    folder, stem = Path(builder.cache_dir), f"{builder.dataset_name}-{split}"
    found = [*folder.glob(f"{stem}.arrow"), *folder.glob(f"{stem}-?????-of-?????.arrow")]
    return sorted(str(path) for path in found)


def _is_about_subsets(error: BaseException) -> bool:
    text = str(error)
    return text.startswith("Config name is missing") or "BuilderConfig" in text


def _no_subset(source: SourceConfig, names: Sequence[str]) -> DataError:
    if source.subset is None:
        return DataError(
            f"{source.name}: it has several subsets", f"set subset: {' | '.join(names)}"
        )
    hint = did_you_mean(source.subset, names)
    return DataError(f"{source.name}: there is no subset '{source.subset}'", hint)


def _hint(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return "without a network, name a folder: hub: ./folder, or path: with its files"
    if isinstance(error, FileNotFoundError):
        return "check the id; a gated or private dataset needs HF_TOKEN, and your access granted"
    return ""
