"""The rest of what `judge.py` judges: services, streams, shared memory, schedules, collections.

Each part is what a round has said about itself in `round.json`, held against the ledgers and the journal:

"services": [{"label", "outcome"}]     calls of a service; the ledgers have `served`
"streams": [{"label", "received": [index], "slack", "outcome", "is_closed"}]     the ledgers have `made` and `closed`
"arenas": [{"label", "sum", "outcome", "gone", "left", "before", "after"}]     inodes; the ledgers have `mapped`
"schedules": [{"name", "every_ms"}]
"collections": [{"planned": [KIND/ID], "held": [DIGEST]}]
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

# What a caller may be told when somebody was killed. Anything else, and nothing at all, is a violation.
SERVICE_ENDS = {"ok", "service.gone", "address.unserved", "connection.closed"}
STREAM_ENDS = {"ok", "worker.died", "connection.closed"}
ARENA_ENDS = {"worker.died", "connection.closed", "nobody was left"}

Claim = Callable[[bool, str], None]
Ledger = list[dict[str, Any]]


def judge(records: list[Any], ledger: Ledger, about: dict[str, Any], claim: Claim) -> None:
    services(ledger, about["services"], claim)
    streams(ledger, about["streams"], claim)
    arenas(ledger, about["arenas"], claim)
    for schedule in about["schedules"]:
        ticks(records, schedule, claim)
    for collection in about["collections"]:
        collected(records, collection, claim)


def lines_of(ledger: Ledger, label: str, event: str) -> Ledger:
    return [line for line in ledger if line.get("label") == label and line["event"] == event]


def services(ledger: Ledger, calls: list[dict[str, Any]], claim: Claim) -> None:
    """P3: every caller is answered, with what was done; nothing is done twice on behalf of one call."""
    for call in calls:
        label, outcome = call["label"], call["outcome"]
        served = len(lines_of(ledger, label, "served"))
        claim(outcome in SERVICE_ENDS, f"call {label} of a service was answered with {outcome}")
        claim(served <= 1, f"call {label} of a service was served {served} times")
        claim(outcome != "ok" or served == 1, f"call {label} was answered, and the service knows nothing of it")


def streams(ledger: Ledger, ends: list[dict[str, Any]], claim: Claim) -> None:
    """P5: what a client has of a stream has no gap, and nothing is made beyond the credit."""
    for end in ends:
        label, received = end["label"], end["received"]
        made = [line["index"] for line in lines_of(ledger, label, "made")]
        claim(received == list(range(len(received))), f"stream {label} has a gap: {received}")
        claim(made == list(range(len(made))), f"the generator of {label} made {made}")
        bound = len(received) + end["slack"]
        claim(len(received) <= len(made) <= bound, f"{len(made)} of {label} were made, with credit for {bound}")
        closed = len(lines_of(ledger, label, "closed"))
        unclear = end["is_closed"] is None and closed <= 1
        claim(unclear or closed == end["is_closed"], f"the generator of {label} was closed {closed} times")
        claim(end["outcome"] in STREAM_ENDS or end["outcome"] is None, f"{label} ended with {end['outcome']}")


def arenas(ledger: Ledger, ends: list[dict[str, Any]], claim: Claim) -> None:
    """P1, P-SHM: whoever dies, the memory serves the next call, or nobody has it any more."""
    for end in ends:
        label = end["label"]
        mapped = lines_of(ledger, label, "mapped")
        claim(len(mapped) == 1 and mapped[0]["shared"], f"the argument of {label} was not shared: {mapped}")
        claim(all(line["sum"] == end["sum"] for line in mapped), f"{label} saw other bytes")
        still = set(end["gone"]) & set(end["left"])
        claim(not still, f"arenas of a dead kernel are still there after {label}: {still}")
        new = set(end["after"]) - set(end["before"])
        claim(not new, f"{label} was killed, and its room did not serve the next: {new}")
        claim(end["outcome"] in ARENA_ENDS, f"call {label} was answered with {end['outcome']}")


def ticks_of(records: list[Any], name: str, *kinds: str) -> Iterator[dict[str, Any]]:
    bodies = (record.body["tick"] for record in records if record.kind in kinds)
    return (tick for tick in bodies if tick["schedule"] == name)


def ticks(records: list[Any], schedule: dict[str, Any], claim: Claim) -> None:
    """P1: every instant is decided once, none is missing, and each tick that fired has started one run."""
    name, every = schedule["name"], schedule["every_ms"]
    instants: list[int] = []
    for tick in ticks_of(records, name, "tick.fired", "tick.skipped"):
        instants.extend(range(tick["scheduled"], tick.get("last", tick["scheduled"]) + 1, every))
    expected = list(range(min(instants, default=0), max(instants, default=-1) + 1, every))
    claim(sorted(instants) == expected, f"instants of {name} are missing or met twice: {Counter(instants)}")
    runs = Counter(record.body.get("idem") for record in records if record.kind == "run.started")
    fired = list(ticks_of(records, name, "tick.fired"))
    claim(bool(fired), f"{name} has never ticked")
    for tick in fired:
        key = f"schedule:{name}:{tick['scheduled']}"
        claim(runs[key] == 1, f"the tick {key} has started {runs[key]} runs")
    started = sum(times for key, times in runs.items() if key and key.startswith(f"schedule:{name}:"))
    claim(started == len(fired), f"{len(fired)} ticks of {name} have started {started} runs")


def named(item: dict[str, Any]) -> str:
    return f"{item['kind']}/{item['id']}"


def collected(records: list[Any], collection: dict[str, Any], claim: Claim) -> None:
    """P7: what was planned has gone, each item once and to its end; nothing that was held, nor a run under way."""
    gone = Counter(named(record.body["item"]) for record in records if record.kind == "gc.collected")
    moved = Counter(
        named(record.body["item"])
        for record in records
        if record.kind == "gc.moved" and record.body["outcome"]["outcome"] == "trashed"
    )
    for item, times in gone.items():
        # A run is hidden by its record, and there is nothing to be moved.
        if not item.startswith("run/"):
            claim(moved[item] == times, f"{item} was collected {times} times, and moved {moved[item]} times")
    for item in collection["planned"]:
        claim(gone[item] == 1, f"{item} was planned to go, and was collected {gone[item]} times")
    for digest in collection["held"]:
        claim(gone[f"artifact/{digest}"] == 0, f"artifact {digest} was held, and was collected")
    finished: set[str] = set()
    for record in records:
        if record.kind == "run.finished":
            finished.add(record.body["run"])
        elif record.kind == "gc.collected" and record.body["item"]["kind"] == "run":
            run = record.body["item"]["id"]
            claim(run in finished, f"#{record.seq}: run {run} was under way, and was collected")


def forge(kind: str, records: list[Any], ledger: Ledger, about: dict[str, Any]) -> bool:
    """Makes a violation of this kind, if it is one of ours."""
    made = FORGERIES.get(kind)
    if made:
        made(records, ledger, about)
    return made is not None


def nobody_answered(_records: list[Any], _ledger: Ledger, about: dict[str, Any]) -> None:
    about["services"][-1]["outcome"] = None


def served_twice(_records: list[Any], ledger: Ledger, about: dict[str, Any]) -> None:
    ledger.extend(lines_of(ledger, about["services"][-1]["label"], "served"))


def item_lost(_records: list[Any], _ledger: Ledger, about: dict[str, Any]) -> None:
    del about["streams"][-1]["received"][3]


def beyond_credit(_records: list[Any], ledger: Ledger, about: dict[str, Any]) -> None:
    end = about["streams"][0]
    last = lines_of(ledger, end["label"], "made")[-1]
    ledger.extend({**last, "index": last["index"] + more} for more in range(1, end["slack"] + 2))


def left_open(_records: list[Any], ledger: Ledger, about: dict[str, Any]) -> None:
    ledger.remove(lines_of(ledger, about["streams"][-1]["label"], "closed")[0])


def still_mapped(_records: list[Any], _ledger: Ledger, about: dict[str, Any]) -> None:
    end = about["arenas"][-1]
    end["gone"] = [*end["gone"], 1]
    end["left"] = [*end["left"], 1]


def grown(_records: list[Any], _ledger: Ledger, about: dict[str, Any]) -> None:
    about["arenas"][-1]["after"].append(1)


def tick_twice(records: list[Any], _ledger: Ledger, _about: dict[str, Any]) -> None:
    last = records[-1]
    fired = next(record for record in records if record.kind == "tick.fired")
    twice = dataclasses.replace(fired, seq=last.seq + 1, epoch=last.epoch)
    twice.chain = twice.expected_chain(last.chain)
    records.append(twice)


def tick_lost(records: list[Any], _ledger: Ledger, _about: dict[str, Any]) -> None:
    fired = [record for record in records if record.kind == "tick.fired"]
    without(records, fired[len(fired) // 2])


def collected_held(records: list[Any], _ledger: Ledger, about: dict[str, Any]) -> None:
    gone = (record.body["item"] for record in records if record.kind == "gc.collected")
    about["collections"][-1]["held"].append(next(item["id"] for item in gone if item["kind"] == "artifact"))


def half_collected(records: list[Any], _ledger: Ledger, _about: dict[str, Any]) -> None:
    without(records, next(record for record in reversed(records) if record.kind == "gc.moved"))


def without(records: list[Any], lost: Any) -> None:
    """Takes a record out as if it had never been: the others move up, and the chain is right."""
    at = records.index(lost)
    del records[at]
    for place in range(at, len(records)):
        record = records[place]
        record.seq -= 1
        record.chain = record.expected_chain(records[place - 1].chain)


FORGERIES = {
    "nobody-answered": nobody_answered,
    "served-twice": served_twice,
    "item-lost": item_lost,
    "beyond-credit": beyond_credit,
    "left-open": left_open,
    "still-mapped": still_mapped,
    "grown": grown,
    "tick-twice": tick_twice,
    "tick-lost": tick_lost,
    "collected-held": collected_held,
    "half-collected": half_collected,
}
