"""Calls ``greet.hello`` over the kernel's socket with nothing but frames, and prints the reply as JSON."""

import json
import socket
import sys

import msgspec

from eclosion import _frames as frames

with socket.socket(socket.AF_UNIX) as stream:
    stream.connect(sys.argv[1])
    stream.sendall(frames.encode(frames.HELLO, 0, {"client": "frames/1", "api": 1}))
    request = msgspec.msgpack.encode({"name": "Guido"})
    stream.sendall(frames.encode(frames.CALL, 1, {"method": "greet.hello", "idem": "once"}, request))
    decoder = frames.Decoder()
    while data := stream.recv(65536):
        for frame in decoder.push(data):
            if frame.stream == 1:
                print(json.dumps(msgspec.msgpack.decode(frame.body)))
                sys.exit(0 if frame.kind == frames.DATA else 1)
