"""A client of the line dialect in Python, without a dependency: python lines.py SOCKET METHOD [REQUEST as JSON]"""

import itertools
import json
import socket
import sys


class BusError(Exception):
    """What a call was refused with: `code`, `reason`, `message`, `retry`, `help`."""


class Bus:
    def __init__(self, path, **hello):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile(encoding="utf-8", newline="\n")
        self.streams, self.held = itertools.count(1, 2), {}
        self.say("hello", client="lines.py", api=1, **hello)
        self.welcome = self.hear(0)

    def say(self, kind, **keys):
        self.socket.sendall(json.dumps({"type": kind, **keys}).encode() + b"\n")

    def hear(self, stream):
        while not self.held.get(stream):
            line = json.loads(self.lines.readline() or '{"type": "error", "body": {"message": "the kernel is gone"}}')
            if line["type"] == "error" and "stream" not in line:
                raise BusError(line["body"])
            if line["type"] == "ping":
                self.say("pong", id=line.get("id"))
            elif line["type"] != "goaway":
                self.held.setdefault(line.get("stream", 0), []).append(line)
        return self.held[stream].pop(0)

    def stream(self, method, request, credit=64, **keys):
        """Yields items, then the reply. Leaving the loop cancels the call."""
        stream, line = next(self.streams), {}
        self.say("call", stream=stream, method=method, body=request, credit=credit, **keys)
        try:
            for taken in itertools.count(1):
                line = self.hear(stream)
                if line["type"] == "error":
                    raise BusError(line["body"])
                yield line["body"]
                if line.get("end"):
                    return
                self.say("credit", stream=stream, credit=taken + credit)
        finally:
            if not line.get("end"):
                self.say("cancel", stream=stream)

    def call(self, method, request, **keys):
        *_, reply = self.stream(method, request, **keys)
        return reply


if __name__ == "__main__":
    try:
        for item in Bus(sys.argv[1]).stream(sys.argv[2], json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}")):
            print(json.dumps(item), flush=True)
    except BusError as refused:
        sys.exit(json.dumps(refused.args[0]))
