"""Options that several commands share, and how their text is read."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import click

from automl.cli.completing import names
from automl.errors import AutoMLError, UsageError

if TYPE_CHECKING:
    from automl.storage.storage import Storage
    from automl.study.study import Limits
    from automl.trial_code.deadline import TimeLimits

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Location:
    """Where studies lie, as the options say it."""

    storage: str | None
    ledger: str | None
    trusted: bool


def storage_option(function: F) -> F:
    """Options that become the one argument `storage`, a Location."""

    @functools.wraps(function)
    def command(
        *args: Any, storage: str | None, ledger: str | None, trust_storage: bool, **others: Any
    ) -> Any:
        return function(*args, storage=Location(storage, ledger, trust_storage), **others)

    for option in (
        click.option(
            "--trust-storage",
            is_flag=True,
            envvar="AUTOML_TRUST_STORAGE",
            help="Let Optuna unpickle what it keeps there: CMA-ES, a journal in Redis.",
        ),
        click.option(
            "--ledger",
            metavar="URL",
            help="An SQL database for the ledger, where the storage cannot hold it "
            "[AUTOML_LEDGER].",
        ),
        click.option(
            "--storage",
            metavar="URL",
            help="Where studies lie [AUTOML_STORAGE, else sqlite:///automl.db]; set AUTOML_STORAGE "
            "for a URL with a password, which others could see on the command line.",
        ),
    ):
        command = option(command)
    return cast(F, command)


def json_option(function: F) -> F:
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line on stdout."
    )(function)


class _AfterFiles(click.Option):
    """An option whose environment variable counts after a study file, as AUTOML_STORAGE does."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        in_file = (ctx.default_map or {}).get(self.name or "") is not None
        return None if in_file else super().resolve_envvar_value(ctx)


def data_dir_option(function: F) -> F:
    return click.option(
        "--data-dir",
        cls=_AfterFiles,
        type=click.Path(path_type=Path, file_okay=False),
        envvar="AUTOML_DATA_DIR",
        help="Where data sets lie on this machine [AUTOML_DATA_DIR].",
    )(function)


def limit_options(more: str = "") -> Callable[[F], F]:
    """The budget; `more` words how a resumed study reads it."""

    def add(function: F) -> F:
        for option in (
            click.option(
                "--gpu-hours",
                type=float,
                metavar="H",
                help=f"Train for at most H hours{more}, summed over all workers.",
            ),
            click.option("--timeout", metavar="TIME", help="Stop after 90s, 10m, 2h."),
            click.option(
                "--evaluations", type=int, metavar="N", help=f"Pay for at most N trials{more}."
            ),
            click.option(
                "--trials", type=int, metavar="N", help=f"End at N trials{more}, reused included."
            ),
        ):
            function = option(function)
        return function

    return add


def training_options(function: F) -> F:
    """What a trial may take, fixed with the study."""
    for option in (
        click.option(
            "--cost-metric",
            metavar="METRIC",
            default="seconds",
            help="What --gpu-hours counts: a metric in seconds, or as measured [seconds].",
        ),
        click.option(
            "--epoch-timeout", metavar="TIME", help="Fail a trial without a report in TIME."
        ),
        click.option("--trial-timeout", metavar="TIME", help="Fail a trial that takes longer."),
    ):
        function = option(function)
    return function


def worker_options(function: F) -> F:
    for option in (
        click.option(
            "--dry-run", is_flag=True, help="Say what would be started, and start nothing."
        ),
        click.option(
            "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda:0 … [auto]"
        ),
        click.option(
            "--per-device",
            type=int,
            metavar="K",
            help="With --workers auto: K workers share each device [1].",
        ),
        click.option(
            "--workers",
            default="1",
            metavar="N|auto",
            help="Processes to train in; auto: one for each GPU, or for two cores [1].",
        ),
        click.option(
            "--launcher",
            default="local",
            shell_complete=names("launcher"),
            help="What starts further workers [local].",
        ),
    ):
        function = option(function)
    return function


def trust_options(function: F) -> F:
    for option in (
        click.option(
            "--trust-plugins", is_flag=True, help="Load all code and paths the study names."
        ),
        click.option(
            "--plugin",
            "named",
            multiple=True,
            metavar="FILE",
            help="Approve this file, module or path of the study.",
        ),
    ):
        function = option(function)
    return function


def open_storage(place: Location) -> "Storage":
    """The storage asked for, made where there is none yet."""
    from automl.storage.storage import storage_from

    return storage_from(place.storage, place.ledger, place.trusted)


def existing_storage(place: Location) -> "Storage":
    """The storage asked for, for commands that only make sense where studies lie.

    Raises:
        UsageError: there is no such file; none is made.
    """
    storage = open_storage(place)
    if (missing := storage.missing()) is not None:
        how = "--storage or AUTOML_STORAGE"
        if missing != storage.masked:
            how = "--ledger or AUTOML_LEDGER"
        raise UsageError(
            f"no database {missing} here: name another by {how}, or start a study by automl search"
        )
    return storage


def enqueue_option(function: F) -> F:
    return click.option(
        "--enqueue",
        type=click.File(encoding="utf-8"),
        metavar="FILE",
        help="Try these decisions first: one JSON object a line; - reads standard input.",
    )(function)


def queued(file: IO[str] | None) -> list[dict[str, Any]]:
    """The decisions of `--enqueue`.

    Raises:
        UsageError: a line is none of decisions; the text names it.
    """
    from automl.space.decisions import plain_decisions

    found = []
    for where, decisions in decision_lines(file) if file else ():
        with naming(where):
            found.append(plain_decisions(decisions))
    return found


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Say in which line of a file decisions cannot be used."""
    try:
        yield
    except AutoMLError as error:
        raise UsageError(f"{where}: {error}") from error


def decision_lines(file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The decisions of each line that is not empty, with where it stands.

    Raises:
        UsageError: a line is no JSON object; the text names it.
    """
    for number, line in enumerate(_text(file), 1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: no JSON: {error}") from None
        if not isinstance(value, dict):
            raise UsageError(
                f'{where}: expected an object such as {{"lr": 0.01}}, got {line.strip()[:60]}'
            )
        yield where, value


def _text(file: IO[str]) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError:
        raise UsageError(f"{file.name}: no text in UTF-8") from None


def limits(
    trials: int | None, evaluations: int | None, timeout: str | None, gpu_hours: float | None
) -> "Limits":
    from automl.study.study import Limits

    return Limits(trials, evaluations, _time("--timeout", timeout), gpu_hours)


def time_limits(trial: str | None, epoch: str | None) -> "TimeLimits":
    from automl.trial_code.deadline import TimeLimits

    return TimeLimits(_time("--trial-timeout", trial), _time("--epoch-timeout", epoch))


def _time(option: str, text: str | None) -> float | None:
    return None if text is None else seconds(text, option)


def seconds(text: str, option: str = "--timeout") -> float:
    """`90`, `90s`, `10m`, `2h` or `1d` as seconds.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"{option}: expected a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def part_options(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    """`part.option=value` texts by part.

    Raises:
        UsageError: one has another form, or an option is given twice.
    """
    found: dict[str, dict[str, object]] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", text, re.DOTALL)
        if match is None:
            raise UsageError(f"-o: expected part.option=value, got {text!r}")
        part, option, value = match.groups()
        if option in found.setdefault(part, {}):
            raise UsageError(f"-o {part}.{option} is given twice")
        found[part][option] = value
    return found
