"""A run or search as it travels: with URIs for what lay on this machine."""

import logging
import shutil
from pathlib import Path

from ftray.config.base import override
from ftray.config.cluster import ClusterConfig
from ftray.config.paths import is_path
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.submit.uploads import Uploads

logger = logging.getLogger(__name__)

Travelling = tuple[RunConfig, SearchConfig | None]


def travelling(
    run: RunConfig, search: SearchConfig | None, root: str, on: ClusterConfig, folder: Path
) -> Travelling:
    """Return a run, and the search over it, as machines that share no disk can read them.

    Small files go into the job's `folder`, data below the storage root.
    """
    run = override(run, {"storage": root})
    if on.shared_files:
        return run, search
    uploads = Uploads(root, on.upload_gib)
    changes: dict[str, object] = {
        "data.train": [
            source.model_dump() for source in uploads.sources(run.data.train, "data.train")
        ]
    }
    if run.data.eval is not None:
        found = uploads.sources(run.data.eval, "data.eval")
        changes["data.eval"] = [source.model_dump() for source in found]
    if run.data.chat_template not in ("model", "none"):
        shutil.copyfile(run.data.chat_template, folder / _TEMPLATE)
        changes["data.chat_template"] = f"./{_TEMPLATE}"
    if is_path(run.model.name):
        logger.warning("model.name=%s is not sent: the cluster has to have it", run.model.name)
    holdout = None if search is None else search.holdout
    if search is not None and holdout is not None and holdout.path is not None:
        path = uploads.path(holdout.path, "holdout.path")
        search = override(search, {"holdout.path": path})
    return override(run, changes), search


_TEMPLATE = "chat_template.jinja"
