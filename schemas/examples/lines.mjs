// A whole client of the line dialect in Node, without a dependency: node lines.mjs SOCKET METHOD [REQUEST as JSON]

import net from "node:net";
import readline from "node:readline";

export class Bus {
  #held = new Map(); // stream → { lines, wake }
  #next = 1;

  /** Resolves to a client that was welcomed. */
  static async connect(path, hello = {}) {
    const bus = new Bus();
    bus.socket = net.connect(path).on("error", (why) => bus.#end({ message: why.message }));
    const lines = readline.createInterface({ input: bus.socket, crlfDelay: Infinity });
    lines.on("line", (line) => bus.#take(JSON.parse(line)));
    lines.on("close", () => bus.#end({ message: "the kernel is gone" }));
    bus.say({ type: "hello", client: "lines.mjs", api: 1, ...hello });
    bus.welcome = await bus.#hear(0);
    return bus;
  }

  say = (line) => this.socket.write(JSON.stringify(line) + "\n");
  close = () => this.socket.end();

  #slot(stream) {
    if (!this.#held.has(stream)) this.#held.set(stream, { lines: [], wake: () => {} });
    return this.#held.get(stream);
  }

  #take(line) {
    if (line.type === "ping") return this.say({ type: "pong", id: line.id });
    if (line.type === "goaway") return;
    if (line.type === "error" && !line.stream) return this.#end(line.body);
    const slot = this.#slot(line.stream ?? 0);
    slot.lines.push(line);
    slot.wake();
  }

  #end(why) {
    this.gone ??= { type: "error", end: true, body: why };
    for (const slot of this.#held.values()) slot.wake();
  }

  async #hear(stream) {
    const slot = this.#slot(stream);
    while (!slot.lines.length && !this.gone) await new Promise((wake) => (slot.wake = wake));
    const line = slot.lines.shift() ?? this.gone;
    if (line.type === "error") throw Object.assign(new Error(line.body.message), { refused: line.body });
    return line;
  }

  /** Yields items, then the reply. Leaving the loop cancels the call. */
  async *stream(method, request, { credit = 64, ...keys } = {}) {
    const stream = this.#next;
    this.#next += 2;
    this.say({ type: "call", stream, method, body: request, credit, ...keys });
    let open = true;
    try {
      for (let taken = 1; open; taken++) {
        const line = await this.#hear(stream).catch((why) => ((open = false), Promise.reject(why)));
        open = !line.end;
        yield line.body;
        if (open) this.say({ type: "credit", stream, credit: taken + credit });
      }
    } finally {
      if (open) this.say({ type: "cancel", stream });
      this.#held.delete(stream);
    }
  }

  async call(method, request, keys) {
    let reply;
    for await (reply of this.stream(method, request, keys));
    return reply;
  }
}

if (process.argv[1]?.endsWith("lines.mjs")) {
  const [socket, method, request = "{}"] = process.argv.slice(2);
  try {
    const bus = await Bus.connect(socket);
    for await (const item of bus.stream(method, JSON.parse(request))) console.log(JSON.stringify(item));
    bus.close();
  } catch (why) {
    console.error(JSON.stringify(why.refused ?? why.message));
    process.exit(1);
  }
}
