"""Settings of the process that a trial may change, and that are restored before the next one.

Only settings that are cheap to read and restore. Warning filters and new environment variables are
not restored, because libraries set them when a trial is the first to load them.
"""

import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_UNKNOWN = object()


@dataclass(frozen=True)
class _Setting:
    """A setting of the process or of a library.

    Attributes:
        get: Reads it.
        set: Changes it.
        fresh: Its value when its library is loaded, if known.
    """

    get: Callable[[], Any]
    set: Callable[[Any], object]
    fresh: Any = _UNKNOWN


def _python() -> dict[str, _Setting]:
    return {
        "recursion limit": _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        "collection": _Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        "directory": _Setting(os.getcwd, os.chdir),
        "environment": _Setting(lambda: dict(os.environ), _restore_environment),
        "locale": _Setting(_locale, lambda name: locale.setlocale(locale.LC_ALL, name)),
        "logging": _Setting(lambda: logging.root.manager.disable, logging.disable),
        "socket timeout": _Setting(socket.getdefaulttimeout, socket.setdefaulttimeout),
    }


def _locale() -> str:
    return locale.setlocale(locale.LC_ALL)


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.update({name: v for name, v in before.items() if os.environ.get(name) != v})


def _numpy(numpy: ModuleType) -> dict[str, _Setting]:
    fresh = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    return {"errors": _Setting(numpy.geterr, lambda kinds: numpy.seterr(**kinds), fresh)}


def _torch(torch: ModuleType) -> dict[str, _Setting]:
    def determinism() -> tuple[bool, bool]:
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warns

    def determine(how: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(how[0], warn_only=how[1])

    precision = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    cudnn = torch.backends.cudnn
    return {
        "dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        "device": _Setting(torch.get_default_device, torch.set_default_device),
        "gradients": _Setting(torch.is_grad_enabled, torch.set_grad_enabled, fresh=True),
        "determinism": _Setting(determinism, determine, (False, False)),
        "precision": _Setting(*precision, "highest"),
        "threads": _Setting(torch.get_num_threads, torch.set_num_threads),
        **{name: _flag(cudnn, name, name == "enabled") for name in _CUDNN},
    }


_CUDNN = ("benchmark", "deterministic", "enabled")


def _flag(module: Any, name: str, fresh: bool) -> _Setting:
    return _Setting(lambda: getattr(module, name), lambda on: setattr(module, name, on), fresh)


_LIBRARIES: dict[str, Callable[[ModuleType], dict[str, _Setting]]] = {
    "numpy": _numpy,
    "torch": _torch,
}


class ProcessSettings:
    """Records the settings of this process, and restores those that a trial changed.

    The settings of a library that is loaded later are those that it has when it is loaded.
    """

    def __init__(self) -> None:
        self._handlers = _Handlers()
        self._settings = _python()
        self._kept = _read(self._settings)
        self._known: set[str] = set()
        for library in _LIBRARIES:
            if (settings := self._settings_of(library)) is not None:
                self._kept |= _read(settings)

    def restore(self) -> None:
        """Restore the settings that differ."""
        self._handlers.restore()
        for library in _LIBRARIES:
            settings = self._settings_of(library)
            self._kept |= {n: s.fresh for n, s in (settings or {}).items()}
        for name, setting in self._settings.items():
            before = self._kept.get(name, _UNKNOWN)
            # A setting that cannot be restored, such as a deleted directory, must not end a search.
            with suppress(Exception):
                if before is not _UNKNOWN and setting.get() != before:
                    setting.set(before)

    def _settings_of(self, library: str) -> dict[str, _Setting] | None:
        """The settings of a library that was loaded since the last call."""
        module = sys.modules.get(library)
        if module is None or library in self._known:
            return None
        try:
            settings = _LIBRARIES[library](module)
        except AttributeError:
            return None  # not completely loaded yet
        self._known.add(library)
        self._settings |= settings
        return settings


def _read(settings: dict[str, _Setting]) -> dict[str, Any]:
    found = {}
    for name, setting in settings.items():
        with suppress(Exception):
            found[name] = setting.get()
    return found


class _Handlers:
    """The handlers of the signals that ask this process to stop, which a trial may replace."""

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._known = {number: signal.getsignal(number) for number in numbers}

    def restore(self) -> None:
        """Restore the handlers; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._known.items():
            # A handler that was not set from Python cannot be restored.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._known)
