// What the browser tests stand on: a gateway, the example worker, a server of pages, and Debian's Chromium.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

const root = fileURLToPath(new URL("../..", import.meta.url));
const examples = join(root, "clients/examples");
const python = join(root, "tests/.venv/bin/python");
const generated = join(root, "tests/.gen");
const TIMEOUT = 20_000;

async function freePort() {
  const server = createTcpServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A `twinspan serve` of its own. Settings are named as the variables are, without TWINSPAN_. */
export async function startGateway(settings) {
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TWINSPAN_")));
  // The pages come from another port, and so from another origin.
  const data = await mkdtemp(join(tmpdir(), "twinspan-browser-"));
  const all = { ORIGINS: "http://127.0.0.1:*,http://localhost:*", DATA_DIR: data, ...settings };
  for (const [name, value] of Object.entries(all)) env[`TWINSPAN_${name}`] = value;
  const binary = process.env.TWINSPAN_BINARY ?? join(root, "target/debug/twinspan");
  const child = spawn(binary, ["serve", "--listen", address], { env, stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (piece) => (log += piece));
  const exited = once(child, "exit");
  const deadline = Date.now() + TIMEOUT;
  while (!(await fetch(`http://${address}/readyz`).then((response) => response.ok, () => false))) {
    if (child.exitCode !== null || Date.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`the gateway did not start:\n${log}`);
    }
    await delay(20);
  }
  return {
    address,
    ws: `ws://${address}`,
    /** Asks it to stop; the exit code. */
    async stop() {
      child.kill("SIGTERM");
      const [code] = await exited;
      if (code !== 0) console.error(log);
      return code;
    },
  };
}

/** clients/examples/worker.py, in no hurry if so wanted. */
export async function startWorker({ address }, role, pause_s = 0.01) {
  const env = { ...process.env, PYTHONPATH: `${generated}:${examples}`, PYTHONUNBUFFERED: "1", no_proxy: "127.0.0.1" };
  const script = `import sys, worker; worker.PAUSE = ${pause_s}; worker.main(*sys.argv[1:])`;
  const child = spawn(python, ["-c", script, address, role], { env, stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const lines = createInterface(child.stdout);
  const [line] = await Promise.race([once(lines, "line"), exited.then(() => ["nothing, and ended"])]);
  if (!line.startsWith("serving")) throw new Error(`the worker said ${line}`);
  return {
    /** What it answers, from its own source. */
    answer(query) {
      const script = "import sys, worker; sys.stdout.buffer.write((worker.answer(sys.argv[1]) + ' ').encode())";
      return execFileSync(python, ["-c", script, query], { env }).toString();
    },
    async stop() {
      child.kill("SIGTERM");
      await exited;
    },
  };
}

/** Serves clients/examples/page.html, and a blank page. */
export async function servePages() {
  const server = createServer(async (request, response) => {
    const page = request.url.startsWith("/page.html?") ? await readFile(join(examples, "page.html")) : "<!doctype html><body>";
    response.writeHead(200, { "content-type": "text/html; charset=utf-8" }).end(page);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** Debian's Chromium, which talks to nobody but the pages of these tests. */
export async function openBrowser() {
  const userDataDir = await mkdtemp(join(tmpdir(), "twinspan-browser-"));
  const quiet = ["gpu", "quic", "background-networking", "component-update", "sync"].map((what) => `--disable-${what}`);
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    userDataDir,
    args: ["--no-sandbox", "--no-first-run", "--no-proxy-server", ...quiet],
    timeout: 60_000,
  });
  return {
    async newPage() {
      const page = await browser.newPage();
      page.setDefaultTimeout(TIMEOUT);
      return page;
    },
    pages: () => browser.pages(),
    async close() {
      await browser.close();
      await rm(userDataDir, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
