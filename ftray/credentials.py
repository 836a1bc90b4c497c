"""Ray's authentication token: a file that only its owner reads, named in the environment."""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from ftray.errors import ClusterError

_FILE = "RAY_AUTH_TOKEN_PATH"
_TOKEN = "RAY_AUTH_TOKEN"
_MODE = "RAY_AUTH_MODE"


def use_token(file: str) -> None:
    """Let this process and its children show the token in that file, and no other."""
    _name(Path(file).expanduser())
    os.environ[_MODE] = "token"


def make_token(path: Path) -> None:
    """Write a new token into a file that nobody else may read; Ray's own leaves it open to all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))


def use_own_token() -> None:
    """Let the Ray that this process starts have a token of its own, for as long as it lives.

    Ray then does what it does by itself, but for the file, which it would leave open to all.
    """
    folder = tempfile.mkdtemp(prefix="ftray-token-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "token")
    make_token(path)
    _name(path)


def is_given() -> bool:
    """Whether the environment says which token counts, or that none does."""
    disabled = os.environ.get(_MODE, "").lower() == "disabled"
    return disabled or bool(os.environ.get(_TOKEN) or os.environ.get(_FILE))


def _name(path: Path) -> None:
    try:
        path.open(encoding="utf-8").close()
    except OSError as error:
        raise ClusterError(
            f"cannot read the cluster's token in {path}: {error.strerror}",
            "get it from whoever started the cluster, and name its file in token_file",
        ) from None
    os.environ.pop(_TOKEN, None)
    os.environ[_FILE] = str(path)
