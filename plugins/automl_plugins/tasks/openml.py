"""OpenML: a table by its name or its number there, fetched once and kept.

Source: J. Vanschoren, J. N. van Rijn, B. Bischl, L. Torgo: OpenML: Networked Science in Machine
Learning, SIGKDD Explorations 15(2), 2013.
"""

import logging
import math
import os
import re
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from automl import Goal, Reading, Task, UsageError, hookimpl, table_task, with_reading

_log = logging.getLogger("automl")

_MIRROR = "AUTOML_OPENML_SERVER"
"""Whom to ask in OpenML's place; it is a machine's, as the data directory is, not a study's."""
_SECONDS = 60.0
_MEGABYTE = 2**20
_SEVERAL = "Multiple active versions"
"""How scikit-learn's warning begins that it chose one of several data sets."""


@with_reading
def openml(
    *,
    dataset: str,
    version: int | None = None,
    data_dir: Path | None = None,
    max_megabytes: int = 500,
    reading: Reading,
) -> Task:
    """Predict one column of a data set of OpenML from the others.

    dataset: its name or its number. version: of a name that several data sets have. data_dir:
    keeps it (or AUTOML_DATA_DIR, else scikit-learn's own folder) in its folder `openml`; what lies
    there needs no network. max_megabytes: of its cells as numbers, for all are read into memory.
    target: by default OpenML's own; it is classes where OpenML says so, else a number. missing:
    by default but for words that are categories here. All other options are those of
    `automl.Reading`.

    Raises:
        UsageError: OpenML cannot be reached, knows none of that name or several; it is no table,
            or nothing can be learned from it.
    """
    found = _fetch(dataset, version, data_dir)
    name = str(found.details.get("name", dataset))
    _check_cells(name, found.data, max_megabytes)
    return table_task(name, _table(found), _as_declared(name, found, reading))


# Asking.
def _fetch(dataset: str, version: int | None, data_dir: Path | None) -> Any:
    """What scikit-learn makes of it: all columns as numbers, those of categories by their place.

    Raises:
        UsageError: it cannot be had; the text says why, and what to do.
    """
    from sklearn.datasets import fetch_openml

    asked, mirror = _asked(dataset, version), _mirror()
    home = _home(data_dir, mirror)
    options = {"data_home": str(home), "target_column": None, "as_frame": False}
    with warnings.catch_warnings(record=True) as said, _asking(mirror):
        warnings.simplefilter("always")
        warnings.filterwarnings("error", _SEVERAL)
        try:
            found = fetch_openml(**asked, **options, parser="liac-arff")
        except Exception as error:  # it does not check answers: whatever a wrong one makes it raise
            damaged = [str(each.message) for each in said if "Invalid cache" in str(each.message)]
            text = _refusal(error, repr(dataset), home, bool(damaged))
            raise UsageError(f"task openml: {text}") from error
    for each in said:
        _log.warning("task openml: %s", str(each.message).splitlines()[0])
    return found


def _asked(dataset: str, version: int | None) -> dict[str, Any]:
    if version is not None and version < 1:
        raise UsageError(f"task openml: version must be at least 1, got {version}")
    if dataset.isdecimal():
        if version is not None:
            raise UsageError(f"task openml: {dataset} is a number, not a name: leave out version")
        return {"data_id": int(dataset)}
    if not dataset.strip():
        raise UsageError("task openml: expected the name or the number of a data set, got nothing")
    # It becomes a part of an address, and of the path of a file.
    return {"name": quote(dataset, safe=""), "version": version or "active"}


def _mirror() -> str:
    server = os.environ.get(_MIRROR, "").rstrip("/")
    if server and not (server.startswith(("http://", "https://")) and urlsplit(server).netloc):
        raise UsageError(f"{_MIRROR} must be like https://openml.example, got {server!r}")
    return server


def _home(data_dir: Path | None, mirror: str) -> Path:
    """The folder to keep data in; a mirror's may be other data of the same numbers."""
    from sklearn.datasets import get_data_home

    given = data_dir or os.environ.get("AUTOML_DATA_DIR")
    try:
        home = Path(get_data_home(data_home=None if given is None else str(given)))
    except OSError as error:
        raise UsageError(f"cannot keep data in {error.filename}: {error.strerror}") from error
    return home / urlsplit(mirror).netloc.replace(":", "-") if mirror else home


@contextmanager
def _asking(mirror: str) -> Iterator[None]:
    """Have what goes to OpenML go to a mirror where there is one, and nothing wait for ever."""
    before = getattr(urllib.request, "_opener", None)
    urllib.request.install_opener(urllib.request.build_opener(_Asking(mirror)))
    try:
        yield
    finally:
        urllib.request.install_opener(before)


class _Asking(urllib.request.BaseHandler):
    """Sees each request before the handlers that connect."""

    handler_order = 0

    def __init__(self, mirror: str) -> None:
        self._mirror = mirror

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        parts = urlsplit(request.full_url)
        host = parts.hostname or ""
        if self._mirror and (host == "openml.org" or host.endswith(".openml.org")):
            request.full_url = self._mirror + parts._replace(scheme="", netloc="").geturl()
        request.timeout = _SECONDS
        return request

    https_request = http_request


def _refusal(error: Exception, dataset: str, home: Path, damaged: bool) -> str:
    """What went wrong, and what to do."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, UserWarning):
        versions = re.findall(r"version (\d+), status", str(error))
        known = ", ".join(versions)
        return (
            f"OpenML has several data sets {dataset}, the first of version {known}: "
            f"choose one by -o task.version={versions[0] if versions else 1}"
        )
    if isinstance(error, HTTPError):
        return f"OpenML answered {error.code} ({error.reason}) for {dataset}: try again later"
    if isinstance(error, URLError | TimeoutError | ConnectionError | HTTPException):
        lacks = f"its copy in {home} is damaged" if damaged else f"{home} holds no copy"
        return (
            f"cannot reach OpenML for {dataset} ({getattr(error, 'reason', said)}), and {lacks}: "
            "connect once, or name a folder that holds it by --data-dir"
        )
    if isinstance(error, OSError) and error.errno:
        return f"cannot keep {dataset} in {home}: {error.strerror}: name another by --data-dir"
    if isinstance(error, ValueError) and said.rstrip(".").endswith("found"):
        return f"OpenML knows no data set {dataset}: look it up on openml.org, or check its version"
    if isinstance(error, ValueError) and said.startswith("STRING"):
        return f"{dataset} has columns of free text, which are not read: take csv:FILE without them"
    return (
        f"what OpenML says of {dataset} cannot be read ({type(error).__name__}: {said}): remove "
        f"{home / 'openml'} and try again, or take another version"
    )


# The table.
def _check_cells(name: str, cells: Any, max_megabytes: int) -> None:
    from scipy.sparse import issparse

    if issparse(cells):
        raise UsageError(f"task openml: {name} is sparse, and no table: take another data set")
    if cells.nbytes > max_megabytes * _MEGABYTE:
        raise UsageError(
            f"task openml: {name} holds {cells.nbytes / _MEGABYTE:,.0f} MB, and takes several "
            "times as much memory: take another data set, or raise max_megabytes"
        )


def _as_declared(name: str, found: Any, reading: Reading) -> Reading:
    """A reading with what OpenML says of the columns, where it does not say it itself."""
    target = reading.target or _target(name, found)
    goal = reading.goal
    if goal is Goal.AUTO:
        goal = Goal.CLASSIFICATION if target in found.categories else Goal.REGRESSION
    taken = {target, *reading.categorical, *reading.numeric, *reading.ignore}
    nominal = [column for column in found.feature_names if column in found.categories]
    categorical = (*reading.categorical, *(column for column in nominal if column not in taken))
    missing = reading.missing
    if missing == Reading.missing:
        known = {str(word).lower() for words in found.categories.values() for word in words}
        missing = tuple(word for word in missing if word not in known)
    return replace(reading, target=target, goal=goal, categorical=categorical, missing=missing)


def _target(name: str, found: Any) -> str:
    """The column that OpenML wants predicted."""
    said = str(found.details.get("default_target_attribute") or "")
    if said in found.feature_names:
        return said
    what = f"names {said!r}" if said else "names none"
    raise UsageError(
        f"task openml: expected one target of {name}, but OpenML {what}: choose one by "
        f"-o task.target=NAME; there are: {', '.join(found.feature_names)}"
    )


def _table(found: Any) -> dict[str, list[str | None]]:
    columns = zip(found.feature_names, found.data.T, strict=True)
    return {name: _cells(column, found.categories.get(name)) for name, column in columns}


def _cells(column: Any, categories: Sequence[str] | None) -> list[str | None]:
    """Numbers [n], NaN where missing, as a table's cells; equal ones are one object."""
    import numpy as np

    values, places = np.unique(column, return_inverse=True)
    texts = [_text(value, categories) for value in values.tolist()]
    return [texts[place] for place in places.tolist()]


def _text(value: float, categories: Sequence[str] | None) -> str | None:
    if math.isnan(value):
        return None
    return repr(value).removesuffix(".0") if categories is None else str(categories[int(value)])


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"openml": openml}
