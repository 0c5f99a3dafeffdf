"""Append-only record of the releases that were executed.

A ledger is a set of runs. Each run has a unique id and entries that only grow: the
last count goes up, or a new entry follows. Whoever loads, copies or merges a ledger
goes on in a fresh run, so two forks of one checkpoint never write the same run, and
the union of their runs counts what both of them spent.
"""

import dataclasses
import json
import math
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Self, final

from accounting.caveats import CAVEATS
from accounting.events.base import Event, checked_count, merge_counts
from accounting.events.relations import NeighboringRelation
from accounting.events.sampling import (
    FixedSizeSampledEvent,
    UnverifiedSamplingEvent,
    event_from_dict,
)

SCHEMA_VERSION = 1
_INSECURE = "insecure"


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Equal releases and how often they happened.

    Attributes:
        event: what one release did.
        count: how often, >= 1.
        l2_norm_clip: clip norm C > 0 that was applied, in units of the gradient.
        noise_source: name of the generator; "insecure..." is not private.
    """

    event: Event
    count: int
    l2_norm_clip: float
    noise_source: str

    def __post_init__(self) -> None:
        if not isinstance(self.event, Event):
            raise ValueError(
                f"event is {self.event!r}, not an Event. A release that is not stated"
                " cannot be counted. Pass for example GaussianEvent(1.1)."
            )
        object.__setattr__(self, "count", checked_count(self.count))
        clip = self.l2_norm_clip
        is_number = hasattr(clip, "__float__") and not isinstance(clip, bool)
        if not is_number or not 0 < float(clip) < math.inf:
            raise ValueError(
                f"l2_norm_clip is {clip!r}, not a finite number above 0. The noise was"
                " scaled to it, so the release means nothing without it. Pass the clip"
                " norm that was applied."
            )
        object.__setattr__(self, "l2_norm_clip", float(clip))
        if not isinstance(self.noise_source, str) or not self.noise_source:
            raise ValueError(
                f"noise_source is {self.noise_source!r}, not a name. The statement says"
                " which generator hid the data. Pass the name of the generator."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Remark:
    """What a report about the releases must say beside its figure.

    Attributes:
        caveat: id of a caveat in the checklist.
        detail: what was seen here, in words.
        foregone: the kind of release that was planned and not made, and how often; None
            where nothing was.
    """

    caveat: str
    detail: str
    foregone: tuple[Event, int] | None = None

    def __post_init__(self) -> None:
        if self.caveat not in CAVEATS:
            raise ValueError(
                f"caveat is {self.caveat!r}, which no checklist knows. Its text would"
                " be missing in every report. Pass one of its ids."
            )


Key = tuple[Event, float, str]
Entries = list[tuple[Key, int]]


@final
class Ledger:
    """What was released so far, in this process and in those it continues.

    Attributes:
        about: what is known beside the releases, to be read by people: "examples",
            "saved_at", "model", "target_epsilon", "target_delta". No bound depends on
            it.

    Guarantees:
        No operation lowers a count. `charge` is O(1) and safe to call from threads.

    >>> from accounting.events import GaussianEvent
    >>> ledger = Ledger()
    >>> ledger.charge(GaussianEvent(1.1), l2_norm_clip=1.0, noise_source="secure")
    >>> ledger.total
    1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Entries] = {}
        self._remarks: dict[str, Remark] = {}
        self.about: dict[str, str | int | float] = {}
        self._open: Entries | None = None
        self._latest: Event | None = None
        self._process_id = os.getpid()

    def charge(
        self,
        event: Event,
        *,
        l2_norm_clip: float,
        noise_source: str,
        count: int = 1,
    ) -> None:
        """Records count releases. Call it before the result leaves the step.

        Args:
            event: what one release does.
            l2_norm_clip: clip norm that is applied.
            noise_source: name of the generator; "insecure..." marks the ledger.
            count: how many equal releases, >= 1.

        Raises:
            ValueError: an argument out of range.
        """
        key = (event, l2_norm_clip, noise_source)
        with self._lock:
            if self._process_id != os.getpid():
                # A fork: parent and child must not write the same run.
                self._process_id, self._open = os.getpid(), None
            entries = self._open
            # A key equal to a recorded one has been validated (True == 1.0 is harmless:
            # the recorded key stays).
            if entries and entries[-1][0] == key and type(count) is int and count > 0:
                entries[-1] = (entries[-1][0], entries[-1][1] + count)
                self._latest = event
                return
            release = Release(event, count, l2_norm_clip, noise_source)
            self._latest = event
            if entries is None:
                entries = self._open = self._runs[uuid.uuid4().hex] = []
            _append(entries, _key(release), release.count)

    def remark(self, caveat: str, detail: str) -> None:
        """Lets every report say, once, what was seen beside the releases.

        Args:
            caveat: id of a caveat in the checklist.
            detail: what was seen, in words; no figure of the data.

        Raises:
            ValueError: nobody knows the caveat.
        """
        with self._lock:
            self._remarks[f"{caveat}: {detail}"] = Remark(caveat, detail)

    def forgo(self, count: int, detail: str) -> None:
        """Records that training stopped, after looking, before its plan was done.

        Args:
            count: how many more releases like the latest were planned, >= 1.
            detail: who stopped, in words.

        Raises:
            ValueError: count is out of range, or nothing was charged in this process.
        """
        count = checked_count(count)
        with self._lock:
            if self._latest is None:
                raise ValueError(
                    f"count is {count!r}, and this ledger was charged for nothing here."
                    " Only the latest release says what was planned. Charge first."
                )
            foregone = self._latest, count
            self._remarks[uuid.uuid4().hex] = Remark(
                "chosen_by_looking", detail, foregone
            )

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What reports must say beside their figure, in the order of the events."""
        with self._lock:
            return tuple(self._remarks.values())

    @property
    def releases(self) -> tuple[Release, ...]:
        """Equal releases merged over all runs, in an order fixed by their content."""
        with self._lock:
            pairs = merge_counts(
                pair for entries in self._runs.values() for pair in entries
            )
        if len(pairs) > 1:
            pairs = tuple(sorted(pairs, key=repr))
        return tuple(
            Release(event, count, clip, source)
            for (event, clip, source), count in pairs
        )

    @property
    def total(self) -> int:
        """Number of releases over all runs."""
        with self._lock:
            return sum(count for entries in self._runs.values() for _, count in entries)

    @property
    def is_private(self) -> bool:
        """False if any release drew its noise from a source called insecure."""
        with self._lock:
            return not any(
                source.startswith(_INSECURE)
                for entries in self._runs.values()
                for (_, _, source), _ in entries
            )

    def supported_relation(self, *coming: Event) -> NeighboringRelation:
        """The strongest relation that has a bound for everything recorded.

        REPLACE_ONE once a batch of fixed size was drawn, else ZERO_OUT once a
        ready-made batch was used, else ADD_OR_REMOVE_ONE.

        Args:
            coming: further events that the bound must cover too.
        """
        events = [*(release.event for release in self.releases), *coming]
        if any(isinstance(event, FixedSizeSampledEvent) for event in events):
            return NeighboringRelation.REPLACE_ONE
        is_unverified = any(isinstance(e, UnverifiedSamplingEvent) for e in events)
        if is_unverified:
            return NeighboringRelation.ZERO_OUT
        return NeighboringRelation.ADD_OR_REMOVE_ONE

    def merge(self, other: "Ledger") -> None:
        """Takes in everything another ledger knows; never lowers a count.

        Of a run that both know, the longer version is kept. If neither continues the
        other, each kind of release keeps the larger of its two counts. If the other
        ledger knows more of the run that is being written here, that is kept and the
        next charge opens a fresh run.

        Args:
            other: another ledger; it stays as it is.
        """
        if not isinstance(other, Ledger):
            raise ValueError(
                f"other is {other!r}, not a Ledger. Merging anything else would lose"
                " what was spent. Pass a Ledger, or Ledger.from_json(text)."
            )
        foreign, remarks = other._snapshot(), dict(other._remarks)
        with self._lock:
            self._remarks |= remarks
            if not self._runs:
                self.about = dict(other.about)
            # Of two trainings, what they have in common.
            common = self.about.items() & other.about.items()
            self.about = {k: v for k, v in self.about.items() if (k, v) in common}
            self._latest = self._latest or other._latest
            for run_id, theirs in foreign.items():
                ours = self._runs.get(run_id, [])
                merged = _longer(ours, theirs)
                if merged != ours:
                    if ours is self._open:
                        self._open = None
                    self._runs[run_id] = merged

    def to_json(self, about: Mapping[str, str | int | float] | None = None) -> str:
        """The ledger as readable JSON that `from_json` takes back.

        Args:
            about: what the file says beside the releases; else what was read.
        """
        runs = [
            {
                "run_id": run_id,
                "entries": [
                    {
                        "event": event.to_dict(),
                        "count": count,
                        "l2_norm_clip": clip,
                        "noise_source": source,
                    }
                    for (event, clip, source), count in entries
                ],
            }
            for run_id, entries in self._snapshot().items()
        ]
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        about = self.about if about is None else about
        if about:
            content["about"] = dict(about)
        content["runs"] = runs
        with self._lock:
            remarks = dict(self._remarks)
        if remarks:
            content["remarks"] = [_of_remark(*pair) for pair in remarks.items()]
        return json.dumps(content, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; later charges go to a fresh run.

        Raises:
            ValueError: not JSON, another schema, unknown or missing fields, counts or
                clips out of range, a run id twice.
        """
        try:
            content = json.loads(text, object_pairs_hook=_unique_fields)
        except (TypeError, RecursionError, json.JSONDecodeError) as error:
            raise _unreadable(f"it is not JSON ({error})") from None
        remarks = content.pop("remarks", []) if isinstance(content, dict) else []
        about = content.pop("about", {}) if isinstance(content, dict) else {}
        content = _fields(content, ("schema_version", "runs"), "the ledger")
        version = content["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            raise _unreadable(
                f"schema_version is {version!r}, and only {SCHEMA_VERSION} is known"
            )
        ledger = cls()
        for run in _list(content["runs"], "runs"):
            run = _fields(run, ("run_id", "entries"), "a run")
            run_id = run["run_id"]
            if not _is_run_id(run_id):
                raise _unreadable(f"run_id {run_id!r} is not 32 hexadecimal digits")
            if run_id in ledger._runs:
                raise _unreadable(f"run_id {run_id!r} occurs twice")
            entries: Entries = ledger._runs.setdefault(run_id, [])
            for entry in _list(run["entries"], "entries"):
                release = _release(entry)
                _append(entries, _key(release), release.count)
        ledger._remarks = dict(_remark(r) for r in _list(remarks, "remarks"))
        ledger.about = _about(about)
        return ledger

    def _snapshot(self) -> dict[str, Entries]:
        """Runs that no later charge can change."""
        with self._lock:
            return {run_id: list(entries) for run_id, entries in self._runs.items()}

    def __getstate__(self) -> tuple[dict[str, Entries], dict[str, Remark]]:
        """Copies and pickles hold the runs; the copy opens its own run when charged."""
        return self._snapshot(), dict(self._remarks)

    def __setstate__(self, state: tuple[dict[str, Entries], dict[str, Remark]]) -> None:
        self.__init__()
        self._runs, self._remarks = state

    def __reduce__(self) -> tuple[Any, ...]:
        return (Ledger, (), self.__getstate__())

    def __iter__(self) -> Iterator[Release]:
        return iter(self.releases)

    def __len__(self) -> int:
        return len(self.releases)

    def __repr__(self) -> str:
        return f"<Ledger: {self.total} releases of {len(self)} kinds>"


def _key(release: Release) -> Key:
    return release.event, release.l2_norm_clip, release.noise_source


def _append(entries: Entries, key: Key, count: int) -> None:
    """Adds to the last entry if it is of the same kind, else opens a new one."""
    if entries and entries[-1][0] == key:
        entries[-1] = (key, entries[-1][1] + count)
    else:
        entries.append((key, count))


def _longer(ours: Entries, theirs: Entries) -> Entries:
    """The version that continues the other; in conflict the maximum of each kind."""
    if _is_prefix(theirs, ours):
        return ours
    if _is_prefix(ours, theirs):
        return theirs
    counts = dict(merge_counts(ours))
    for key, count in merge_counts(theirs):
        counts[key] = max(count, counts.get(key, 0))
    return list(counts.items())


def _is_prefix(shorter: Entries, longer: Entries) -> bool:
    """True if a run could have grown from `shorter` to `longer`."""
    if not shorter:
        return True
    last = len(shorter) - 1
    if len(longer) <= last or shorter[:last] != longer[:last]:
        return False
    (key, count), (longer_key, longer_count) = shorter[last], longer[last]
    return key == longer_key and count <= longer_count


def _about(value: Any) -> dict[str, str | int | float]:
    """What a file says beside its releases, validated."""
    if not isinstance(value, dict) or not all(
        isinstance(item, str | int | float) for item in value.values()
    ):
        raise _unreadable(f"about is {value!r}, not an object of words and numbers")
    return value


def _of_remark(key: str, remark: Remark) -> dict[str, Any]:
    """A remark as it is written."""
    event, count = remark.foregone or (None, 0)
    return {
        "key": key,
        "caveat": remark.caveat,
        "detail": remark.detail,
        "event": None if event is None else event.to_dict(),
        "count": count,
    }


def _remark(value: Any) -> tuple[str, Remark]:
    """One remark of the file, validated, under its key."""
    names = ("key", "caveat", "detail", "event", "count")
    value = _fields(value, names, "a remark")
    if not all(isinstance(value[name], str) for name in names[:3]):
        raise _unreadable(f"a remark has other than words for {names[:3]}")
    try:
        foregone = None
        if value["event"] is not None:
            event, count = value["event"], checked_count(value["count"])
            foregone = event_from_dict(event), count
        return value["key"], Remark(value["caveat"], value["detail"], foregone)
    except ValueError as error:
        raise _unreadable(f"a remark holds {error}") from None


def _release(entry: Any) -> Release:
    """One entry of the file as a validated release."""
    names = ("event", "count", "l2_norm_clip", "noise_source")
    entry = _fields(entry, names, "an entry")
    try:
        return Release(event_from_dict(entry["event"]), *(entry[n] for n in names[1:]))
    except ValueError as error:
        raise _unreadable(f"an entry is invalid ({error})") from None


def _unreadable(reason: str) -> ValueError:
    return ValueError(
        f"The ledger cannot be read: {reason}. Guessing the rest could lose releases"
        " that were made and understate epsilon. Restore the file from a copy, or use"
        " the version of accounting that wrote it."
    )


def _fields(value: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(f"{where} is {value!r}, not an object")
    if set(value) != set(names):
        raise _unreadable(
            f"{where} has the fields {sorted(value)}, expected {sorted(names)}"
        )
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unreadable(f"{where} is {value!r}, not a list")
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the file; a field given twice would hide a count."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _unreadable(f"a field is given twice among {[name for name, _ in pairs]}")
    return result


def _is_run_id(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) == 32
        and all(character in "0123456789abcdef" for character in value)
    )
