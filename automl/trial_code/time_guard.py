"""A small process that ends its parent at a time limit, whatever the parent is doing.

It does not need the parent's interpreter, whose lock a trial may hold forever. Each line of its
input is a JSON object that sets or removes the limit, or holds the line to write if the parent ends
by itself. Its argument is the descriptor of the file to which the parent dumps its stack. It is run
by its path, so it imports nothing from automl.
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
"""Makes the parent dump its stack; ignored by default, unlike most signals."""
_LOOK_SECONDS = 0.1
_SOON_SECONDS = 0.01
_WRITING_SECONDS = 0.3
_LONGEST_STACK = 65536


def main() -> None:
    """Read orders until the parent ends or its time is over."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent, order, left, rest, at_exit = os.getppid(), {}, float("inf"), b"", ""
    while os.getppid() == parent:
        looked = time.monotonic()
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if not (read := os.read(0, 65536)):
                # The parent is ending, or a trial closed descriptors that it did not open.
                _wait_for_end(parent)
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in map(json.loads, lines):
                at_exit = line.get("at_exit", at_exit)
                if "at_exit" not in line:
                    order, left = line, line.get("seconds", float("inf"))
            if lines:
                continue
        # If this process was suspended as well, that time does not count.
        left -= min(time.monotonic() - looked, 2 * _LOOK_SECONDS)
        if left <= 0:
            _end(parent, order)
            return
    if at_exit:
        sys.stderr.write(f"{at_exit}\n")


def _wait_for_end(parent: int) -> None:
    pause = _SOON_SECONDS
    while os.getppid() == parent:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)


def _end(parent: int, order: dict[str, Any]) -> None:
    """Leave a note for the worker that takes over the trial, print the reason, end the parent."""
    leave_note(Path(order["note"]), {"why": order["why"], "stack": _stack_of(parent)})
    sys.stderr.write(f"{order['line']}\n")
    sys.stderr.flush()
    os.kill(parent, signal.SIGKILL)


def leave_note(note: Path, content: dict[str, Any]) -> None:
    """Note why a process is ended; without a note, the trial is retried and this attempt counts."""
    try:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_text(json.dumps(content))
    except OSError:
        pass


def _stack_of(parent: int) -> str:
    """The parent's stack; empty if the parent does not write it."""
    try:
        assert STACK_SIGNAL is not None
        os.kill(parent, STACK_SIGNAL)
        time.sleep(_WRITING_SECONDS)
        # The file position is shared with the parent, so read from the start explicitly.
        return os.pread(int(sys.argv[1]), _LONGEST_STACK, 0).decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
