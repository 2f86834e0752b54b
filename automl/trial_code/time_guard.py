"""A small process that ends its parent once a limit has passed, whatever holds the parent up.

It needs nothing of the parent: not its interpreter, which a trial may hold for good. Each line of
its input puts off the end, or calls it off, or gives the line to write if the parent ends by
itself. Its argument is the number of the open file in which the parent writes down where it is.
Run by its path, so it imports nothing of automl's.
"""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

STACK_SIGNAL = getattr(signal, "SIGURG", None)
"""At this the parent writes down where it is; left alone, it does nothing."""
_LOOK_SECONDS = 0.1
_SOON_SECONDS = 0.01
_WRITING_SECONDS = 0.3
_LONGEST_STACK = 65536


def main() -> None:
    """Read and wait until the parent ends, or its time is over."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent, order, left, rest, parting = os.getppid(), {}, float("inf"), b"", ""
    while os.getppid() == parent:
        looked = time.monotonic()
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if not (read := os.read(0, 65536)):
                # The parent ends, or a trial has closed what was not its own.
                _wait_for_end(parent)
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in map(json.loads, lines):
                parting = line.get("parting", parting)
                if "parting" not in line:
                    order, left = line, line.get("seconds", float("inf"))
            if lines:
                continue
        # A machine or a terminal that stopped this process, too, has not used up the time.
        left -= min(time.monotonic() - looked, 2 * _LOOK_SECONDS)
        if left <= 0:
            _end(parent, order)
            return
    if parting:
        sys.stderr.write(f"{parting}\n")


def _wait_for_end(parent: int) -> None:
    pause = _SOON_SECONDS
    while os.getppid() == parent:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)


def _end(parent: int, order: dict[str, Any]) -> None:
    """Leave a note for whoever takes the trial over, say why, and end the parent."""
    leave_note(Path(order["note"]), {"why": order["why"], "stack": _stack_of(parent)})
    sys.stderr.write(f"{order['line']}\n")
    sys.stderr.flush()
    os.kill(parent, signal.SIGKILL)


def leave_note(note: Path, content: dict[str, Any]) -> None:
    """Say why a process is ended; if that fails, the attempt counts, and no more is known."""
    try:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_text(json.dumps(content))
    except OSError:
        pass


def _stack_of(parent: int) -> str:
    """Where the parent is; nothing where it does not say."""
    try:
        assert STACK_SIGNAL is not None
        os.kill(parent, STACK_SIGNAL)
        time.sleep(_WRITING_SECONDS)
        # From the start, whatever the place is at which the parent writes on.
        return os.pread(int(sys.argv[1]), _LONGEST_STACK, 0).decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
