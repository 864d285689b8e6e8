"""Guards the folder of a run: one process at a time, no run over another, no resume with other settings.

Needs no package, so that it works wherever a training does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drift_policy.errors import ConfigurationError, UserError

AUTO = "auto"  # of `resume`: go on if there is something to go on with, as a requeued job of a cluster wants it
OTHER_NAME = "give this run another name, name=... ."
_LOCK_FILE = ".lock"
_MOST_NAMED = 8  # differing settings that a message lists: another task or data set differs in dozens
_ATTEMPTS = 100  # to make and lock a folder that other processes remove


def goes_on(resume: bool | str, holds_run: Callable[[], bool]) -> bool:
    """Return whether a training goes on with a run: `resume`, where "auto" stands for whether there is one.

    Raises:
        ConfigurationError: `resume` is neither true nor false nor "auto".
    """
    if resume not in (True, False, AUTO):
        raise ConfigurationError(f"resume must be true, false or {AUTO}, but is {resume!r}.")
    return holds_run() if resume == AUTO else bool(resume)


@contextmanager
def claimed_folder(
    run_dir: Path,
    holds_run: Callable[[], bool],
    resume: bool | str,
    how_to_resume: str,
    if_busy: str = OTHER_NAME,
) -> Iterator[None]:
    """Hold the folder of a run for this process.

    A folder without a checkpoint may be used again. One that was made here is removed if nothing was written to it, as
    after an early error.

    Args:
        run_dir: the folder; made if it is missing.
        holds_run: whether there is a checkpoint to go on from; asked once the folder is held.
        resume: whether the user wants to go on with a run; "auto" takes the folder as it is.
        how_to_resume: the command, for messages.
        if_busy: what to do if another process holds the folder, for messages.

    Raises:
        UserError: it holds a run and `resume` is not set, or the other way round; another process is writing there;
            or it cannot be written at all.
    """
    with _locked(run_dir, if_busy):
        going_on = goes_on(resume, holds_run)
        if going_on and not holds_run():
            raise UserError(
                f"There is nothing to resume in {run_dir}: check name=, or leave out resume=true (resume={AUTO} starts "
                "where there is nothing)."
            )
        if not going_on and holds_run():
            raise UserError(
                f"{run_dir} already holds a run. Go on with it: {how_to_resume} . Or give the new run another name: "
                "name=... ."
            )
        yield


def differing_settings(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of the settings in which two nested mappings differ; absent ones count as null."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            name
            for key in dict.fromkeys([*before, *now])
            for name in differing_settings(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == now else [prefix]


def setting_of(settings: Any, name: str) -> Any:
    """Return what stands under a dotted name in nested mappings, or None."""
    for key in name.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def refuse_changes(
    run_dir: Path, changed: Collection[str], advice: str | None = None, before: Any = None, now: Any = None
) -> None:
    """Require that no setting has changed since a run was started.

    Args:
        run_dir: the folder of the run.
        changed: names of settings.
        advice: what to do instead; if absent, to start a run of another name.
        before: the settings that it was started with; the message shows their values if they are given.
        now: those of today.

    Raises:
        ConfigurationError: something has changed.
    """
    if changed:
        listed = list(changed)[:_MOST_NAMED]
        more = f" and {len(changed) - len(listed)} more" if len(changed) > len(listed) else ""
        advice = advice or "Resume it with what it was started with, or start a new run with another name=... ."
        values = [f"{name} was {setting_of(before, name)!s:.60}, now {setting_of(now, name)!s:.60}" for name in listed]
        shown = "" if before is None else f" {'; '.join(values)}."
        raise ConfigurationError(
            f"The run in {run_dir} was started with other values of {', '.join(listed)}{more}.{shown} {advice}"
        )


@contextmanager
def _locked(folder: Path, if_busy: str) -> Iterator[None]:
    """Hold a folder; one that was made for this and that nothing was written to is gone afterwards, as are its parents.

    Other processes may do the same at any moment: none holds a lock file that is no longer there (`_open_lock`), and
    only empty folders are removed.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = _open_lock(folder, if_busy)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that somebody took away during the run
            if made and os.listdir(folder) == [_LOCK_FILE]:
                (folder / _LOCK_FILE).unlink()
        fcntl.flock(lock, fcntl.LOCK_UN)  # worker processes may still hold copies of the descriptor
        os.close(lock)
        with suppress(OSError):  # the first that holds something
            for place in made:
                place.rmdir()


def _open_lock(folder: Path, if_busy: str) -> int:
    """Return the descriptor of the lock file of a folder, both made if they are missing, once this process holds it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the folder that it had made
            continue
        except OSError as error:
            raise _not_writable(folder, str(error)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UserError(f"Another process is training in {folder}: {if_busy}") from error
        if _is_file(lock, folder / _LOCK_FILE):
            return lock
        os.close(lock)  # removed between opening and locking it
    raise _not_writable(folder, "folders or files that are made there disappear")


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _not_writable(folder: Path, why: str) -> UserError:
    return UserError(f"The folder {folder} cannot be written ({why}): choose another, output=... .")
