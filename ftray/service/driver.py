"""What runs on the cluster for a job: `ftray train` or `ftray tune`, as the storage root says.

The command is `python -m ftray.service.driver CLUSTER ROOT JOB SUBMISSION`. Its exit codes are
ftray's.
"""

import logging
import os
import sys
from collections.abc import Sequence

from ftray.config.cluster import ClusterConfig
from ftray.connection import connecting
from ftray.errors import FtrayError, OccupiedError
from ftray.service.order import Answer, read_order, write_end
from ftray.train.fit import fit
from ftray.tune.search import search

logger = logging.getLogger(__name__)
_BUG, _INTERRUPTED = 1, 130


def main(arguments: Sequence[str]) -> int:
    """Work on a job; return the exit code, and leave it in the storage root."""
    cluster, root, job, submission = arguments
    _prepare()
    answer = Answer(0, "")
    try:
        _work(cluster, root, job)
    except FtrayError as error:
        answer = Answer(error.exit_code, error.message, isinstance(error, OccupiedError))
        logger.error("%s", error)
    except KeyboardInterrupt:
        answer = Answer(_INTERRUPTED, "")
    except Exception:  # the edge of the process: the job has to hear of a bug too
        answer = Answer(_BUG, "an internal error; the job's log has it")
        logger.exception("a bug")
    write_end(root, job, submission, answer)
    return answer.exit_code


def _work(cluster: str, root: str, job: str) -> None:
    order = read_order(root, job)
    with connecting(ClusterConfig(address=cluster)) as connection:
        if order.search is None:
            fit(order.run, connection)
        else:
            search(order.run, order.search, connection)


def _prepare() -> None:
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("ftray").setLevel(logging.INFO)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
