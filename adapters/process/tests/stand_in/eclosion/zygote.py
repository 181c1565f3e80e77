"""A zygote that follows the contract in the fewest lines; its workers do what a line of text on their stream says."""

import argparse
import importlib
import json
import os
import selectors
import socket
import subprocess
import sys
import traceback


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--preload", action="append", default=[])
    options = parser.parse_args()
    os.set_inheritable(options.fd, False)
    keeper = socket.socket(fileno=options.fd)
    for module in options.preload:
        try:
            importlib.import_module(module)
        except ImportError as why:
            say(keeper, "failed", error=str(why))
            return
    say(keeper, "ready", pid=os.getpid(), python=sys.version, threads=[])
    while True:
        packet, descriptors, _, _ = socket.recv_fds(keeper, 65536, 2)
        if not packet:
            return
        request = json.loads(packet)["fork"]
        pid = fork_twice(keeper, request, descriptors)
        say(keeper, "forked", worker=request["worker"], pid=pid)
        for descriptor in descriptors:
            os.close(descriptor)


def say(link, name, **fields):
    link.send(json.dumps({name: fields}).encode())


def fork_twice(keeper, request, descriptors):
    reader, writer = os.pipe()
    if (middle := os.fork()) == 0:
        if (worker := os.fork()) == 0:
            status = 70
            try:
                keeper.close()
                os.close(reader)
                os.close(writer)
                os.setsid()
                for number, path in ((1, request["stdout"]), (2, request["stderr"])):
                    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                    os.dup2(opened, number)
                    os.close(opened)
                work(*(socket.socket(fileno=number) for number in descriptors))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.write(writer, str(worker).encode())
        os._exit(0)
    os.close(writer)
    pid = int(os.read(reader, 20))
    os.close(reader)
    os.waitpid(middle, 0)
    return pid


def work(stream, lifeline):
    """Lines in, lines out. The end of the stream ends nothing; the end of the lifeline ends all."""
    stream.send(b"up\n")
    selector = selectors.DefaultSelector()
    selector.register(lifeline, selectors.EVENT_READ)
    selector.register(stream, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is lifeline:
                packet, descriptors, _, _ = socket.recv_fds(lifeline, 65536, 2)
                if not packet:
                    os._exit(0)
                stream = socket.socket(fileno=descriptors[0])
                selector.register(stream, selectors.EVENT_READ)
                stream.send(f"adopted {os.getpid()}\n".encode())
            elif line := stream.recv(4096).decode():
                obey(stream, *line.split())
            else:
                selector.unregister(stream)
                stream.close()


def obey(stream, order, *operands):
    if order == "exit":
        os._exit(int(operands[0]))
    elif order == "child":
        stream.send(f"{subprocess.Popen(['sleep', '1000']).pid}\n".encode())
    elif order == "eat":
        # Each page is written to.
        bytes(range(256)) * (int(operands[0]) // 256)
    elif order == "escape":
        # The daemon's classic: two forks, a session of its own, another program.
        reader, writer = os.pipe()
        if (middle := os.fork()) == 0:
            os.setsid()
            if (escapee := os.fork()) == 0:
                os.execvp("sleep", ["sleep", "1000"])
            os.write(writer, str(escapee).encode())
            os._exit(0)
        os.waitpid(middle, 0)
        stream.send(os.read(reader, 20) + b"\n")
        os.close(reader)
        os.close(writer)


main()
