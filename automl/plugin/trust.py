"""What this user has approved on this machine: a study in a shared database is data, not code."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from automl.errors import StorageError, UntrustedError
from automl.state_directory import STATE, make_folder, private, state_directory


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Code:
    """What a file held, and each file that it imports from beside it, by relative path."""

    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """One digest of all of it."""
        if not self.beside:
            return self.sha256
        return sha256(json.dumps([self.sha256, dict(self.beside)], sort_keys=True).encode())


@dataclass(frozen=True)
class Source:
    """Code outside installed plugins: a file, or a module's file, and what it held."""

    reference: str
    path: str
    code: Code

    def claim(self, kind: str, name: str = "") -> str:
        """What is approved: one name in this very content, for one use; a plugin file whole."""
        return f"code {kind} {self.reference}{':' if name else ''}{name} {self.code.digest()}"


@dataclass(frozen=True)
class Trust:
    """Decides what may be loaded or opened; what the user typed in this command is approved.

    everything: the user said --trust-plugins. typed: the user names all of it himself, as in
    `automl search`. named: paths and modules given again on the command line. claims: what is
    approved by other words of the user's.
    """

    everything: bool = False
    typed: bool = False
    named: frozenset[str] = field(default_factory=frozenset)
    claims: frozenset[str] = field(default_factory=frozenset)

    def copy_of(self, digest: str | None) -> Path | None:
        """The file the user has named that holds the code of this digest, wherever it lies."""
        if digest is None:
            return None
        files = sorted(path for name in self.named if (path := Path(name)).is_file())
        same = (path.resolve() for path in files if sha256(path.read_bytes()) == digest)
        return next(same, None)

    def approving(self, claims: Iterable[str]) -> "Trust":
        """This trust, and these claims, each of one use alone."""
        return replace(self, claims=self.claims | frozenset(claims))

    def require(self, claim: str, what: str, name: str) -> None:
        """Pass if approved; remember it where the user has just named it.

        Raises:
            UntrustedError: a study asks for it and this user never approved it.
        """
        named = name in self.named or _resolved(name) in self.named
        if self.typed or self.everything or named or claim in self.claims:
            _remember(claim)
        elif not _approval(claim).exists():
            raise UntrustedError(
                f"the study uses {what}, which you have not approved on this machine: look at "
                f"it, then name it again (--plugin {name}) or pass --trust-plugins"
            )


def trusting(everything: bool, named: Iterable[str]) -> Trust:
    """The trust of a command that runs a stored study: what was named on its line, or all."""
    names = {name for given in named for name in (given, _resolved(given))}
    return Trust(everything=everything, named=frozenset(names))


def _resolved(name: str) -> str:
    return str(Path(name).resolve())


def _approval(claim: str) -> Path:
    return state_directory() / "approved" / sha256(claim.encode())


def _remember(claim: str) -> None:
    approval = _approval(claim)
    if approval.exists():
        return
    try:
        make_folder(approval.parent)
        with open(approval, "w", opener=private) as file:
            file.write(json.dumps({"approved": claim}) + "\n")
    except OSError as error:
        raise StorageError(
            f"cannot remember approvals in {approval.parent}: {error.strerror}; "
            f"set {STATE} to a directory you can write"
        ) from error
