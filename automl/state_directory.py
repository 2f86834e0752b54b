"""The user's private files on this machine: approvals, checkpoints and logs."""

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger("automl")

STATE = "AUTOML_STATE_DIR"
ARTIFACTS = "AUTOML_ARTIFACTS"
_FOLDER, _FILE = 0o700, 0o600


def state_directory() -> Path:
    """The directory of this user's approvals, checkpoints and worker logs (AUTOML_STATE_DIR)."""
    if own := os.environ.get(STATE):
        return Path(own)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "automl"


def artifacts_directory() -> Path:
    """The directory of checkpoints (AUTOML_ARTIFACTS).

    Machines that share it can continue from each other's checkpoints.
    """
    own = os.environ.get(ARTIFACTS)
    return Path(own) if own else state_directory() / "checkpoints"


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, private to this user within the state directory.

    Existing folders that other users can open are made private too. A folder elsewhere, such as
    AUTOML_ARTIFACTS, is shared on purpose; its permissions follow the umask.

    Raises:
        OSError: The folder cannot be made.
    """
    root = state_directory()
    if not folder.is_relative_to(root):
        folder.mkdir(parents=True, exist_ok=True)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    inside = folder.relative_to(root).parts
    for depth in range(len(inside) + 1):
        each = root.joinpath(*inside[:depth])
        each.mkdir(mode=_FOLDER, exist_ok=True)
        if each != root or not _belongs_to_all(root):
            _close(each, _FOLDER)


def private(path: str | Path, flags: int) -> int:
    """An opener for `open(..., opener=private)` that keeps state files private to this user."""
    if not Path(path).is_relative_to(state_directory()):
        return os.open(path, flags, 0o666)
    opened = os.open(path, flags, _FILE)
    close_to_others(Path(path))
    return opened


def close_to_others(file: Path) -> None:
    """Make a file private to this user if it is in the state directory."""
    if file.is_relative_to(state_directory()):
        _close(file, _FILE)


def _close(path: Path, mode: int) -> None:
    try:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    except OSError as error:  # another user owns it
        _log.warning("cannot make %s private to this user: %s", path, error.strerror)


def _belongs_to_all(root: Path) -> bool:
    """Whether a folder given as the state directory must stay open to others, like /tmp."""
    path = root.resolve()
    return bool(path.stat().st_mode & stat.S_ISVTX) or path in (Path.home(), Path(path.anchor))
