"""A client of the line dialect in Python, without a dependency: python lines.py SOCKET METHOD [REQUEST as JSON]"""

import json
import socket
import sys


class Bus:
    def __init__(self, path, **hello):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile(encoding="utf-8", newline="\n")
        self.last, self.held = -1, {}
        self.say("hello", client="lines.py", api=1, **hello)
        self.welcome = self.hear(0)

    def say(self, kind, **keys):
        self.socket.sendall(json.dumps({"type": kind, **keys}).encode() + b"\n")

    def hear(self, stream):
        while not self.held.get(stream):
            line = json.loads(self.lines.readline() or '{"type": "error", "body": {"message": "the kernel is gone"}}')
            if line["type"] == "ping":
                self.say("pong", id=line.get("id"))
            elif line["type"] != "goaway":  # An error without a stream is the connection's: whoever waits is told.
                self.held.setdefault(line.get("stream", stream if line["type"] == "error" else 0), []).append(line)
        if (line := self.held[stream].pop(0))["type"] == "error":
            raise RuntimeError(line["body"])  # {code, reason, message, retry, help}
        return line

    def stream(self, method, request, credit=64, **keys):
        """Yields items, and the reply at last. Leaving the loop cancels the call."""
        self.last = stream = self.last + 2
        self.say("call", stream=stream, method=method, body=request, credit=credit, **keys)
        try:
            while not (line := self.hear(stream)).get("end"):
                yield line["body"]
                self.say("credit", stream=stream, credit=(credit := credit + 1))
        except (GeneratorExit, KeyboardInterrupt):
            self.say("cancel", stream=stream)
            raise
        yield line["body"]


if __name__ == "__main__":
    socket_path, method, request = (*sys.argv[1:], "{}")[:3]
    for item in Bus(socket_path).stream(method, json.loads(request)):
        print(json.dumps(item), flush=True)
