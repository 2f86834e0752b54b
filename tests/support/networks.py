"""A separate network: a namespace joined to this machine by one cable (Linux, as root)."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET; os.setns needs Python 3.12.


@dataclass(frozen=True)
class Network:
    """A network namespace.

    Attributes:
        name: The name of the namespace, and of its cable.
        host: This machine's address in that network.
    """

    name: str
    host: str

    def unplug(self) -> None:
        """Drop all packets from now on, without an error on either side."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        _ip("link", "set", self.name, "up")


def enter(name: str) -> None:
    """Move this process into a network, while it has a single thread."""
    with Path(f"/run/netns/{name}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NETWORK_NAMESPACE):
            raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def apart() -> Iterator[Network]:
    """Create a network, and delete it afterwards; skip the test if that is impossible."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs Linux, root and ip")
    number = os.getpid() % 250
    name, near, far = f"automl{number}", f"10.231.{number}.1", f"10.231.{number}.2"
    with ExitStack() as stack:
        try:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
        _ip("address", "add", f"{near}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", f"{far}/30", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        yield Network(name, near)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
