"""What this user keeps on this machine: approvals, checkpoints and logs, closed to all others."""

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger("automl")

STATE = "AUTOML_STATE_DIR"
ARTIFACTS = "AUTOML_ARTIFACTS"
_FOLDER, _FILE = 0o700, 0o600


def state_directory() -> Path:
    """Where this user's approvals, checkpoints and worker logs are (AUTOML_STATE_DIR)."""
    if own := os.environ.get(STATE):
        return Path(own)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "automl"


def artifacts_directory() -> Path:
    """Where checkpoints are (AUTOML_ARTIFACTS): machines that share it go on from each other's."""
    own = os.environ.get(ARTIFACTS)
    return Path(own) if own else state_directory() / "checkpoints"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; in the state directory for this user alone.

    Those that exist and are open to others are closed. A folder elsewhere, as AUTOML_ARTIFACTS
    names, is shared on purpose: the umask says with whom.

    Raises:
        OSError: it cannot be made.
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
    """Opens a file, for `open(..., opener=private)`: one in the state directory for this user."""
    if not Path(path).is_relative_to(state_directory()):
        return os.open(path, flags, 0o666)
    opened = os.open(path, flags, _FILE)
    close_to_others(Path(path))
    return opened


def close_to_others(file: Path) -> None:
    """Close a file of the state directory to all but this user."""
    if file.is_relative_to(state_directory()):
        _close(file, _FILE)


def _close(path: Path, mode: int) -> None:
    try:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    except OSError as error:  # another user made it
        _log.warning("%s cannot be closed to other users: %s", path, error.strerror)


def _belongs_to_all(root: Path) -> bool:
    """Whether a folder given as the state directory is one that others need, as /tmp is."""
    there = root.resolve()
    return bool(there.stat().st_mode & stat.S_ISVTX) or there in (Path.home(), Path(there.anchor))
