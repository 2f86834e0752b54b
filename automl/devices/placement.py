"""Where workers work: their devices, their shares of these, and their threads."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from automl.devices.discovery import CPU, Device, choose_devices, pin
from automl.errors import UsageError
from automl.plugin.protocols import Launcher
from automl.storable import require_at_most, short

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What numerical libraries read when they are loaded."""
MOST_WORKERS = 100_000
"""As many workers as one search may ask for, so that a slip of a digit starts nothing."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Place:
    """One worker's device, its share of the device's memory, and its threads.

    memory_fraction, threads: None is without limit. near: whether it lies on this machine.
    """

    device: Device = CPU
    memory_fraction: float | None = None
    threads: int | None = None
    near: bool = True

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `automl worker` is told of its place."""
        device = ("--device", self.device.name)
        if self.memory_fraction is None:
            return device
        return (*device, "--memory-fraction", f"{self.memory_fraction:.4g}")

    @property
    def environment(self) -> dict[str, str]:
        """What must hold in a worker's process from its start; the user's own settings stay."""
        limits = {} if self.threads is None else dict.fromkeys(THREADS, str(self.threads))
        return {**self.device.alone, **{n: v for n, v in limits.items() if not os.environ.get(n)}}


def starts_elsewhere(launcher: Launcher) -> bool:
    """Whether a launcher finds the machines; one that does not say so starts workers here."""
    return bool(getattr(launcher, "elsewhere", False))


def arrange(
    launcher: Launcher, workers: str, device: str, per_device: int | None = None
) -> tuple[Place, ...]:
    """The places of a search's workers; torch is not loaded for it.

    Raises:
        UsageError: an option has no such value, or there is no such device.
    """
    arranged = places_elsewhere if starts_elsewhere(launcher) else places_here
    return arranged(workers, device, per_device)


def pinned(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """The places with this process bound to the device of the first, which is its own."""
    own, *others = places
    return (replace(own, device=pin(own.device)), *others) if own.near else places


def places_here(workers: str, device: str, per_device: int | None = None) -> tuple[Place, ...]:
    """The places of a search on this machine, dealt round its devices.

    workers: a number, or `auto` for `per_device` on each device; on a CPU one for two cores.

    Raises:
        UsageError: it is neither, or there is no such device.
    """
    _check_per_device(workers, per_device)
    devices, cores = choose_devices(device), usable_cores()
    by_default = max(1, cores // 2) if devices == (CPU,) else 1
    count = len(devices) * (per_device or by_default) if workers == "auto" else _number(workers)
    dealt = [devices[index % len(devices)] for index in range(count)]
    sharing = Counter(one.name for one in dealt)
    threads = (threads_given() or max(1, cores // count)) if count > 1 else None
    return tuple(
        Place(one, 1 / n if one.is_gpu and (n := sharing[one.name]) > 1 else None, threads)
        for one in dealt
    )


def places_elsewhere(workers: str, device: str, per_device: int | None = None) -> tuple[Place, ...]:
    """The places of a search whose launcher finds the machines; the workers find their devices.

    Raises:
        UsageError: workers is no number, for what is there cannot be counted from here.
    """
    if workers == "auto" or per_device is not None:
        option = "--workers auto" if workers == "auto" else "--per-device"
        raise UsageError(
            f"{option} counts the devices of this machine, and this launcher starts workers "
            "elsewhere: give --workers a number"
        )
    return (Place(Device(device, device), near=False),) * _number(workers)


def threads_given() -> int | None:
    """The threads that this process's environment allows it, where it says a number."""
    first = os.environ.get(THREADS[0], "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """The cores this process may use: by its affinity, and by the quota of its control group.

    cgroups, own: where Linux mounts control groups, and where it says which are this process's.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, int(min([count, *_quotas(cgroups, own)])))


def _check_per_device(workers: str, per_device: int | None) -> None:
    if per_device is None:
        return
    if per_device < 1:
        raise UsageError(f"--per-device: expected a number from 1, got {short(per_device)}")
    require_at_most("--per-device", per_device, MOST_WORKERS)
    if workers != "auto":
        raise UsageError(
            f"--per-device goes with --workers auto; --workers {workers} deals that many workers "
            "round the devices"
        )


def _number(workers: str) -> int:
    # Of no more digits than the most has, for Python reads no number of thousands.
    digits = workers.lstrip("0")
    if not workers.isdecimal() or not digits:
        raise UsageError(f"--workers: expected a number from 1 or auto, got {workers!r}")
    if len(digits) > len(str(MOST_WORKERS)) or int(digits) > MOST_WORKERS:
        raise UsageError(f"--workers: expected at most {MOST_WORKERS:,}, got {short(workers)}")
    return int(digits)


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The quotas, in cores, of this process's control group and of those it lies in."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = cgroups / "cpu" if controllers else cgroups
        folder = base / path.lstrip("/")
        # Within a container the path may be the host's; the mount's root is its own then.
        for each in {folder, *folder.parents, base}:
            if each == base or base in each.parents:
                yield from _quota(each)


def _quota(folder: Path) -> Iterator[float]:
    second = _read(folder / "cpu.max").split()
    first = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    for quota, period in (pair for pair in (second, first) if len(pair) == 2):
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
