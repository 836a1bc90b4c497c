"""The first thing that a submitted command does on its cluster: compare versions, and go on.

python -m ftray.submit.arrival 0.1.0/2.60.0/3.11 train run.yaml --cluster cluster.yaml
"""

import os
import sys

from ftray.errors import ClusterError
from ftray.versions import parse, versions

ARRIVED = "arrived: "


def main() -> int:
    """Become `ftray` with the arguments that follow the versions, if they are those of here."""
    sent, *arguments = sys.argv[1:]
    theirs, mine = parse(sent), versions()
    if theirs != mine:
        said = f"error: the cluster runs {mine}; this was submitted by {theirs}"
        sys.stderr.write(f"{said}\nhint: install the same on both sides\n")
        return ClusterError.exit_code
    sys.stderr.write(f"{ARRIVED}{mine}\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "ftray", *arguments])


if __name__ == "__main__":
    sys.exit(main())
