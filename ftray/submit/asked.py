"""What is submitted, and how."""

from dataclasses import dataclass, field

from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig


@dataclass(frozen=True)
class How:
    """How a run or a search is submitted."""

    key: str | None = None
    """Whoever submits with the same key again gets the same job."""
    env: tuple[str, ...] = ()
    """Names of variables of this process that the job gets too."""
    overwrite: bool = False
    """Delete a run or search of that name first."""
    waits: bool = False
    """Submit although the cluster has no room now; then the job waits for it."""


@dataclass(frozen=True)
class Asked:
    """A run, or a search over one."""

    run: RunConfig
    search: SearchConfig | None = None
    how: How = field(default_factory=How)

    @property
    def name(self) -> str:
        """Of what the job will do."""
        return self.run.name if self.search is None else self.search.name or self.run.name
