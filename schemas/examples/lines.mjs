// A client of the line dialect in Node, without a dependency: node lines.mjs SOCKET METHOD [REQUEST as JSON]
import { EventEmitter, once } from "node:events";
import net from "node:net";
import readline from "node:readline";

export async function connect(path, hello = {}) {
  const arrived = new Map([[0, []]]); // stream → lines
  const news = new EventEmitter().setMaxListeners(0);
  let last = -1, gone;
  function take(line) {
    if (line.type === "ping") say({ type: "pong", id: line.id });
    else if (line.type === "error" && !line.stream) gone ??= line; // The connection's: whoever waits is told.
    else arrived.get(line.stream ?? 0)?.push(line);
    news.emit("line");
  }
  async function hear(id) {
    while (!arrived.get(id).length && !gone) await once(news, "line");
    const line = arrived.get(id).shift() ?? gone;
    if (line.type !== "error") return line;
    throw new Error(line.body.message, { cause: line.body }); // {code, reason, message, retry, help}
  }
  /** Yields items, and the reply at last. Leaving the loop cancels the call. */
  async function* stream(method, request, credit = 64) {
    const id = (last += 2);
    arrived.set(id, []);
    say({ type: "call", stream: id, method, body: request, credit });
    try {
      for (let line = {}; !line.end; ) {
        line = await hear(id);
        yield line.body;
        if (!line.end) say({ type: "credit", stream: id, credit: ++credit });
      }
    } finally {
      say({ type: "cancel", stream: id }); // Means nothing to a call that has ended.
      arrived.delete(id);
    }
  }
  const socket = net.connect(path);
  const say = (line) => socket.write(JSON.stringify(line) + "\n");
  await once(socket, "connect");
  socket.on("error", () => {}).on("close", () => take({ type: "error", body: { message: "the kernel is gone" } }));
  readline.createInterface({ input: socket }).on("line", (line) => take(JSON.parse(line)));
  say({ type: "hello", client: "lines.mjs", api: 1, ...hello });
  return { welcome: await hear(0), stream, close: () => socket.end() };
}
const [, program, path, method, request = "{}"] = process.argv;
if (program?.endsWith("lines.mjs")) {
  for await (const item of (await connect(path)).stream(method, JSON.parse(request))) console.log(JSON.stringify(item));
  process.exit();
}
