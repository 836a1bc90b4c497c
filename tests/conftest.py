"""What every test runs under: offline, quiet, and never in the user's own storage root."""

import atexit
import os
import shutil
import tempfile

_HOME = tempfile.mkdtemp(prefix="ftray-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# Libraries read these when they are imported, so they are set before any test module is.
os.environ |= {
    "FTRAY_HOME": _HOME,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # two workers on two cores would otherwise fight
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
