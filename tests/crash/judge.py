"""Judges one crash round from what it left: a copy of the journal, and the workers' own ledgers.

Written from the description of the journal's stored form alone; it shares no code with the kernel.

    python judge.py ROUND_DIR            exit 0: every promise held; 1: the violations are printed
    python judge.py ROUND_DIR --forge K  forges a violation of kind K first, and must find it

ROUND_DIR holds `journal/` (journal.db, -wal, journal.mark), `ledger/*.jsonl` and `round.json`:
{"expected": {RUN: value}, "kills": {"worker": n, "keeper": n, "kernel": n}, "workers_max": n,
 "told": {"seq": n, "finished": [TASK]}, "forgotten_ns": n, "crowds": [{"run": RUN, "blocks": bool}], and what
`judge_parts.py` judges}.
`told` is what a client had been told when the power went. What the ledger has from before `forgotten_ns` the journal
may have lost: an attempt is dispatched when its record is written, and only what was synced survives a power cut.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import judge_parts
import msgspec

GENESIS = blake3.blake3(b"eclosion/journal/v1").digest()[:16]
REFERENCE = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")


@dataclasses.dataclass
class Record:
    seq: int
    epoch: int
    at: int
    kind: str
    version: int
    cause: str | None
    raw: bytes
    chain: bytes

    @property
    def body(self) -> dict[str, Any]:
        return msgspec.msgpack.decode(self.raw)

    def expected_chain(self, before: bytes) -> bytes:
        seq, n = (int(part) for part in self.cause.split(".")) if self.cause else (0, 0)
        kind = self.kind.encode()
        head = struct.pack(
            ">QIQHBQIII", self.seq, self.epoch, self.at, self.version, int(self.cause is not None), seq, n,
            len(kind), len(self.raw),
        )  # fmt: skip
        return blake3.blake3(before + head + kind + self.raw).digest()[:16]


def read_journal(directory: Path) -> list[Record]:
    # The copy may be opened for writing: SQLite then reads the WAL as it would after a crash.
    database = sqlite3.connect(directory / "journal.db")
    rows = database.execute(
        "SELECT seq, epoch, at, kind, version, cause, body, chain FROM events ORDER BY seq"
    ).fetchall()
    database.close()
    return [Record(*row) for row in rows]


def read_mark(directory: Path) -> tuple[int, bytes] | None:
    content = (directory / "journal.mark").read_bytes()
    best: tuple[int, int, bytes] | None = None
    for offset in (0, 4096):
        slot = content[offset : offset + 64]
        if len(slot) < 64 or slot[:8] != b"ECLMARK1" or blake3.blake3(slot[:48]).digest()[:16] != slot[48:]:
            continue
        counter, seq = struct.unpack(">QQ", slot[8:24])
        if best is None or counter > best[0]:
            best = (counter, seq, slot[32:48])
    return best and best[1:]


def read_ledger(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


Fence = tuple[int, int]


def fence_of(body: dict[str, Any]) -> Fence:
    return (body["fence"]["epoch"], body["fence"]["counter"])


class Judge:
    def __init__(
        self, records: list[Record], mark: tuple[int, bytes] | None, ledger: list[dict[str, Any]], about: dict[str, Any]
    ) -> None:
        self.records, self.mark, self.ledger, self.about = records, mark, ledger, about
        self.violations: list[str] = []

    def claim(self, holds: bool, text: str) -> None:
        if not holds:
            self.violations.append(text)

    def judge(self) -> list[str]:
        self.order()
        self.commits()
        self.dependencies()
        self.ends()
        self.starts()
        self.deaths()
        self.elsewhere()
        self.memory()
        self.crowds()
        judge_parts.judge(self.records, self.ledger, self.about, self.claim)
        return self.violations

    def order(self) -> None:
        """H5: gapless, chained, epochs never fall, nothing below the mark is missing."""
        chain, epoch = GENESIS, 0
        for place, record in enumerate(self.records, start=1):
            self.claim(record.seq == place, f"seq {record.seq} stands at place {place}")
            self.claim(record.chain == record.expected_chain(chain), f"#{record.seq}: the chain is broken")
            self.claim(record.epoch >= epoch, f"#{record.seq}: epoch {record.epoch} after {epoch}")
            chain, epoch = record.chain, record.epoch
        if self.mark:
            seq, marked = self.mark
            found = self.records[seq - 1] if 0 < seq <= len(self.records) else None
            self.claim(
                seq == 0 or (found is not None and found.chain == marked), f"the mark names #{seq}, which is not there"
            )

    def of(self, kind: str) -> Iterator[tuple[Record, dict[str, Any]]]:
        return ((record, record.body) for record in self.records if record.kind == kind)

    def commits(self) -> None:
        """H2, H3: one commit a task, under the largest fence granted so far; fences only grow."""
        granted: dict[tuple[str, str], Fence] = {}
        committed: Counter[tuple[str, str]] = Counter()
        for record in self.records:
            if record.kind not in ("attempt.started", "step.committed"):
                continue
            body = record.body
            task, fence = (body["run"], body["task"]), fence_of(body)
            if record.kind == "attempt.started":
                self.claim(fence > granted.get(task, (0, 0)), f"#{record.seq}: fence {fence} of {task} does not grow")
                self.claim(fence[0] == record.epoch, f"#{record.seq}: fence {fence} of another epoch")
                granted[task] = fence
            else:
                committed[task] += 1
                self.claim(
                    granted.get(task) == fence,
                    f"#{record.seq}: {task} committed under {fence}, not {granted.get(task)}",
                )
        for task, times in committed.items():
            self.claim(times == 1, f"{task} was committed {times} times")

    def dependencies(self) -> None:
        """H8: an attempt starts after the commits of everything it refers to; none starts after a cancel."""
        flows: dict[str, dict[str, Any]] = {}
        done: dict[str, set[str]] = defaultdict(set)
        cancelled: set[str] = set()
        for record in self.records:
            if record.kind == "run.started":
                flows[record.body["run"]] = record.body["flow"]
            elif record.kind == "step.committed":
                body = record.body
                self.claim(body["run"] not in cancelled, f"#{record.seq}: a commit after the cancellation")
                done[body["run"]].add(body["task"])
            elif record.kind == "run.cancelling":
                cancelled.add(record.body["run"])
            elif record.kind == "attempt.started":
                body = record.body
                flow = flows.get(body["run"])
                self.claim(flow is not None, f"#{record.seq}: an attempt of a run that was not started")
                for needed in self.needs(flow, body["task"].split("[")[0]) if flow is not None else ():
                    have = [task for task in done[body["run"]] if task.split("[")[0] == needed]
                    self.claim(bool(have), f"#{record.seq}: {body['task']} started before {needed} was committed")

    @staticmethod
    def needs(flow: dict[str, Any], task: str) -> set[str]:
        spec = flow["tasks"][task]
        text = json.dumps([spec.get("with", {}), spec.get("each"), spec.get("after", [])])
        return {name for name in REFERENCE.findall(text) if name in flow["tasks"]} | set(spec.get("after", []))

    def ends(self) -> None:
        """H2: every accepted run ends once, and with the right value."""
        finished = Counter(body["run"] for _, body in self.of("run.finished"))
        states = {body["run"]: body["state"] for _, body in self.of("run.finished")}
        for _, body in self.of("run.started"):
            self.claim(finished[body["run"]] == 1, f"run {body['run']} ended {finished[body['run']]} times")
        outputs = {(b["run"], b["task"]): b["output"]["body"] for _, b in self.of("step.committed")}
        for run, value in self.about["expected"].items():
            self.claim(states.get(run) == "succeeded", f"run {run} ended {states.get(run)}")
            found = outputs.get((run, "finish"))
            self.claim(found is not None and msgspec.msgpack.decode(found) == value, f"run {run}: not {value}")

    def starts(self) -> None:
        """H4: what was committed was started; starts beyond the first are explained by what the journal saw fail."""
        starts = Counter((line["run"], line["task"]) for line in self.started())
        attempts = Counter((b["run"], b["task"]) for _, b in self.of("attempt.started"))
        ended = {fence_of(b) for _, b in self.of("step.failed")}
        ended |= {fence_of(b) for _, b in self.of("worker.died") if b.get("fence")}
        ended |= self.buried()
        explained = Counter((b["run"], b["task"]) for _, b in self.of("attempt.started") if fence_of(b) in ended)
        remembered = Counter((line["run"], line["task"]) for line in self.started(self.about["forgotten_ns"]))
        for _, body in self.of("step.committed"):
            self.claim(starts[(body["run"], body["task"])] >= 1, f"{body['task']} was committed and never started")
        for task, times in remembered.items():
            self.claim(times <= attempts[task], f"{task} was started {times} times in {attempts[task]} attempts")
            self.claim(times - 1 <= explained[task], f"{task} was started {times} times, {explained[task]} explained")
        begun = {(line["run"], line["task"], line["attempt"]) for line in self.started(self.about["forgotten_ns"])}
        back = {fence_of(b) for _, b in self.of("attempt.stopped")} - ended
        for record, b in self.of("attempt.started"):
            unbegun = fence_of(b) not in back or (b["run"], b["task"], b["attempt"]) not in begun
            self.claim(unbegun, f"#{record.seq}: attempt {b['attempt']} of {b['task']} was given back and had begun")

    def started(self, after_ns: int = 0) -> Iterator[dict[str, Any]]:
        return (line for line in self.ledger if line["event"] == "start" and line.get("ns", after_ns) >= after_ns)

    def buried(self) -> set[Fence]:
        """Attempts that waited at a worker when it died, for all that was known. It may have begun them."""
        found: set[Fence] = set()
        stopped: list[tuple[str, Fence]] = []
        for record in self.records:
            if record.kind == "attempt.stopped":
                stopped.append((record.body["worker"], fence_of(record.body)))
                continue
            if record.kind == "worker.died":
                found |= {fence for worker, fence in stopped if worker == record.body["worker"]}
            stopped = []
        return found

    def crowds(self) -> None:
        """Crowds prove something only if attempts waited at one worker, and behind one that blocks. Not in each: on a
        machine with much to do tasks are not quick for a while."""
        most = behind = 0
        for crowd in self.about["crowds"]:
            waited, returned = self.crowd(crowd["run"])
            most = max(most, waited)
            behind += returned if crowd["blocks"] else 0
        self.claim(most >= 2 or not self.about["crowds"], "no run was a crowd: nothing waited at a worker")
        self.claim(behind > 0 or not self.about["crowds"], "nothing was given back by a worker that blocked")

    def crowd(self, run: str) -> tuple[int, int]:
        """How many attempts of a run one worker had at a time, and how many were given back by one that lived on."""
        of_run = {fence_of(body) for _, body in self.of("attempt.started") if body["run"] == run}
        buried = self.buried()
        given: dict[str, set[Fence]] = defaultdict(set)
        most = returned = 0
        for record in self.records:
            body = record.body
            if record.kind == "worker.died":
                given.pop(body["worker"], None)
            elif "fence" not in body or fence_of(body) not in of_run:
                continue
            elif record.kind == "attempt.started":
                given[body["worker"]].add(fence_of(body))
                most = max(most, len(given[body["worker"]]))
            else:
                given[body["worker"]].discard(fence_of(body))
                returned += record.kind == "attempt.stopped" and fence_of(body) not in buried
        return most, returned

    def elsewhere(self) -> None:
        """H4: what a worker took along when it died is tried again, by another process."""
        pids = {body["worker"]: body["pid"] for _, body in self.of("worker.started")}
        attempts = {fence_of(body): body for _, body in self.of("attempt.started")}
        for record, died in self.of("worker.died"):
            lost = attempts.get(fence_of(died)) if died.get("fence") else None
            if lost is None:
                continue
            what = f"{lost['task']}, lost at #{record.seq} with attempt {lost['attempt']},"
            task = (lost["run"], lost["task"])
            again = [at for at in self.started() if (at["run"], at["task"]) == task and at["attempt"] > lost["attempt"]]
            self.claim(bool(again), f"{what} was not tried again")
            same = [at["attempt"] for at in again if at["pid"] == pids.get(lost["worker"])]
            self.claim(not same, f"{what} was tried again by the same process: attempts {same}")

    def memory(self) -> None:
        """H1: what a client was told is there, and a step that it was told to be finished is not run again."""
        told, last = self.about["told"], self.records[-1].seq
        self.claim(told["seq"] <= last, f"a client was told of #{told['seq']}, the journal ends with #{last}")
        committed = {body["task"]: record.seq for record, body in self.of("step.committed")}
        again = {line["task"] for line in self.started(self.about["forgotten_ns"])}
        for task in told["finished"]:
            self.claim(
                committed.get(task, last + 1) <= told["seq"], f"{task} was told to be finished and is not committed"
            )
            self.claim(
                not self.about["forgotten_ns"] or task not in again, f"{task} was told to be finished and ran again"
            )

    def deaths(self) -> None:
        """Workers die only of what was done to them, which the kernel's own death is not. Or it says why it did it."""
        dead = [(record.seq, body) for record, body in self.of("worker.died") if not body.get("wanted")]
        unwanted = [
            f"#{seq} {body['worker']}: {body['certificate']['death']}"
            for seq, body in dead
            if not (body["certificate"]["death"].get("sender") or "").startswith("eclosion: its call was")
        ]
        kills = self.about["kills"]
        bound = kills["worker"] + kills["keeper"] * self.about["workers_max"]
        self.claim(len(unwanted) <= bound, f"{len(unwanted)} workers died, {bound} deaths are explained: {unwanted}")


def forge(kind: str, records: list[Record], ledger: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Makes a violation, with a chain that is right, so that only its own check can find it."""
    last = records[-1]
    committed = next(record for record in reversed(records) if record.kind == "step.committed")
    if kind == "double-commit":
        double = dataclasses.replace(committed, seq=last.seq + 1, epoch=last.epoch)
        double.chain = double.expected_chain(last.chain)
        records.append(double)
    elif kind == "lost-record":
        del records[len(records) // 2]
    elif kind == "spurious-start":
        task = committed.body
        ledger.append({"event": "start", "run": task["run"], "task": task["task"], "attempt": 1, "pid": 0})
    elif kind == "same-worker":
        forge_same_worker(records, ledger)
    elif kind == "nobody-waited":
        forge_nobody_waited(records)
    elif kind == "begun-and-given-back":
        forge_begun_and_given_back(records, ledger, about)
    elif kind == "untrue":
        about["told"]["seq"] = last.seq + 1
    elif kind == "run-again":
        about["forgotten_ns"] = min(line["ns"] for line in ledger if line["task"] in about["told"]["finished"])
    elif not judge_parts.forge(kind, records, ledger, about):
        sys.exit(f"unknown forgery: {kind}")


def forge_same_worker(records: list[Record], ledger: list[dict[str, Any]]) -> None:
    bodies = [(record.kind, record.body) for record in records]
    lost = {fence_of(body) for kind, body in bodies if kind == "worker.died" and body.get("fence")}
    attempt = next(body for kind, body in bodies if kind == "attempt.started" and fence_of(body) in lost)
    pid = next(body["pid"] for kind, body in bodies if kind == "worker.started" and body["worker"] == attempt["worker"])
    for line in ledger:
        if line["task"] == attempt["task"] and line["attempt"] > attempt["attempt"]:
            line["pid"] = pid


def forge_nobody_waited(records: list[Record]) -> None:
    """Each attempt at a worker of its own."""
    chain = GENESIS
    for record in records:
        if record.kind == "attempt.started":
            record.raw = msgspec.msgpack.encode({**record.body, "worker": f"w-0-{record.seq}"})
        chain = record.chain = record.expected_chain(chain)


def forge_begun_and_given_back(records: list[Record], ledger: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """What was given back unbegun, and committed elsewhere, is said to have been begun too."""
    judge = Judge(records, None, ledger, about)
    unbegun = {fence_of(body) for _, body in judge.of("attempt.stopped")} - judge.buried()
    attempt = next(body for _, body in judge.of("attempt.started") if fence_of(body) in unbegun)
    ledger.append({"event": "start", "pid": 0, **{name: attempt[name] for name in ("run", "task", "attempt")}})


def main(arguments: list[str]) -> int:
    directory = Path(arguments[0])
    records, mark = read_journal(directory / "journal"), read_mark(directory / "journal")
    ledger = list(read_ledger(directory / "ledger"))
    about = json.loads((directory / "round.json").read_text())
    if arguments[1:2] == ["--forge"]:
        forge(arguments[2], records, ledger, about)
    violations = Judge(records, mark, ledger, about).judge()
    for violation in violations:
        print(f"VIOLATION {violation}")
    print(f"{len(records)} records, {len(ledger)} ledger lines, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
