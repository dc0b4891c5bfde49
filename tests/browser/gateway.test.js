// A real browser, `new WebSocket`, and no library, with the example worker on the other side.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, afterEach, before, test } from "node:test";
import { openBrowser, servePages, startGateway, startWorker } from "./support.js";

// Word for word what the README tells browser engineers to send.
const EXACT = '{"id":"msg-123","type":"query","sessionId":"sess-456","payload":{"action":"search","query":"HEA synthesis"}}';

let gateway, worker, slowWorker, pages, browser;

before(async () => {
  [gateway, pages, browser] = await Promise.all([startGateway({ ROUTES: "query=brain" }), servePages(), openBrowser()]);
  worker = await startWorker(gateway, "brain");
  slowWorker = await startWorker(gateway, "slow", 0.1);
});

afterEach(async () => {
  // The first is the one that the browser came with.
  for (const page of (await browser.pages()).slice(1)) await page.close();
});

after(async () => {
  await browser?.close();
  await pages?.close();
  await Promise.all([worker?.stop(), slowWorker?.stop()]);
  assert.equal(await gateway?.stop(), 0);
});

/** A blank page of an origin of its own. */
async function blankPage() {
  const page = await browser.newPage();
  await page.goto(`${pages.url}/blank`);
  return page;
}

async function examplePage(session, role = "brain") {
  const page = await browser.newPage();
  await page.goto(`${pages.url}/page.html?gateway=${gateway.ws}&session=${session}&role=${role}`);
  await joined(page, session);
  return page;
}

// Pages in the background draw no frames, but their documents change all the same.
const until = (page, test, ...values) => page.waitForFunction(test, { polling: "mutation" }, ...values);
const joined = (page, session) => until(page, (text) => document.querySelector("#status").textContent === text, `joined ${session}`);
const done = (page) => until(page, () => document.body.dataset.state === "done");
const longerThan = (page, length) => until(page, (least) => document.querySelector("#answer").textContent.length > least, length);
const text = (page) => page.$eval("#answer", (element) => element.textContent);

test("the exact message of the examples is answered, with no SDK", async () => {
  const page = await blankPage();
  const answer = await page.evaluate((url, message) => {
    const { promise, resolve, reject } = Promise.withResolvers();
    const socket = new WebSocket(url);
    const out = document.body.appendChild(document.createElement("p"));
    socket.onopen = () => socket.send(message);
    socket.onerror = () => reject(new Error("no connection"));
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.error) reject(new Error(frame.error.message));
      if (frame.replyTo === "msg-123") out.textContent += frame.text ?? "";
      if (frame.final) resolve(out.textContent);
    };
    return promise;
  }, `${gateway.ws}/v1/ws`, EXACT);
  assert.equal(answer, worker.answer("HEA synthesis"));
});

test("the README's snippet works in the console of a page", async () => {
  const page = await blankPage();
  const snippet = /```js\n(.*?)```/s.exec(await readFile(new URL("../../README.md", import.meta.url), "utf8"))[1];
  const messages = [];
  const finished = new Promise((resolve) => {
    page.on("console", (message) => {
      messages.push(JSON.parse(message.text()));
      if (messages.at(-1).final) resolve();
    });
  });
  await page.evaluate(snippet.replace("ws://127.0.0.1:7080", gateway.ws));
  await finished;
  assert.equal(messages[0].ack.accepted[0].id, "msg-123");
  assert.equal(messages.map((frame) => frame.text ?? "").join(""), worker.answer("HEA synthesis"));
});

test("the example page shows the answer as it streams in", async () => {
  const page = await examplePage("page", "slow");
  await page.click("button");
  await longerThan(page, 20);
  const source = worker.answer("HEA synthesis");
  const early = await text(page);
  assert.ok(early.length < source.length && source.startsWith(early), early);
  await done(page);
  assert.equal(await text(page), source);
});

test("a reload in mid-answer loses nothing and repeats nothing", async () => {
  const page = await examplePage("reload", "slow");
  await page.click("button");
  const source = worker.answer("HEA synthesis");
  for (const length of [20, 100]) {
    await longerThan(page, length);
    await page.reload();
    const shown = await text(page);
    assert.ok(shown.length > length && shown.length < source.length, `reloaded in mid-answer: ${shown}`);
  }
  await joined(page, "reload");
  await done(page);
  assert.equal(await text(page), source);
});

test("two pages of one session show the same answer", async () => {
  const [one, other] = [await examplePage("shared"), await examplePage("shared")];
  await one.bringToFront();
  await one.$eval("#query", (input) => (input.value = "two pages 🧪"));
  await one.click("button");
  await Promise.all([done(one), done(other)]);
  assert.equal(await text(one), worker.answer("two pages 🧪"));
  assert.equal(await text(other), await text(one));
});

test("a page stops an answer", async () => {
  const page = await examplePage("stopped", "slow");
  await page.click("button");
  await longerThan(page, 10);
  await page.click("#stop");
  await done(page);
  const [shown, source] = [await text(page), worker.answer("HEA synthesis")];
  assert.ok(shown.length < source.length && source.startsWith(shown), shown);
  await until(page, () => document.querySelector("#status").textContent === "ended: the worker was told to stop");
});

test("a page drops what came of an answer that begins again, and appends what comes folded", async () => {
  const page = await examplePage("restarted");
  const shown = await page.evaluate(() => {
    const frames = [
      { seq: "1", id: "q", to: { role: "brain" }, payload: {} },
      { seq: "2", replyTo: "q", attempt: 1, index: 0, text: "half an ans" },
      { seq: "3", replyTo: "q", attempt: 2, restarted: { error: { reason: "WORKER_LOST" } } },
      { seq: "4", replyTo: "q", attempt: 2, index: 0, text: "a whole " },
      { seq: "9", replyTo: "q", attempt: 2, index: 5, foldedFrom: "5", text: "answer, folded" },
    ];
    return frames.map((frame) => {
      receive(frame);
      return document.querySelector("#answer").textContent;
    });
  });
  assert.deepEqual(shown, ["", "half an ans", "", "a whole ", "a whole answer, folded"]);
});

test("binary data is base64 to a page", async () => {
  const page = await blankPage();
  const bytes = await page.evaluate((url) => {
    const { promise, resolve, reject } = Promise.withResolvers();
    const sent = Uint8Array.from({ length: 256 }, (_, index) => index);
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send(JSON.stringify({ type: "bytes", data: btoa(String.fromCharCode(...sent)) }));
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.error) reject(new Error(frame.error.message));
      if (frame.type === "bytes") resolve([...atob(frame.data)].map((letter) => letter.charCodeAt(0)));
    };
    return promise;
  }, `${gateway.ws}/v1/ws?session_id=bytes`);
  assert.deepEqual(bytes, Array.from({ length: 256 }, (_, index) => index));
});

test("a page may choose binary messages by the subprotocol", async () => {
  const page = await blankPage();
  // Frame{id: "p", ping: {data: "x"}}, answered by Frame{reply_to: "p", pong: {data: "x"}}.
  const [protocol, bytes] = await page.evaluate((url) => {
    const { promise, resolve } = Promise.withResolvers();
    const socket = new WebSocket(url, ["twinspan.v1.proto", "twinspan.v1.json"]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(new Uint8Array([0x0a, 1, 0x70, 0xea, 2, 3, 0x0a, 1, 0x78]));
    socket.onmessage = ({ data }) => resolve([socket.protocol, [...new Uint8Array(data)]]);
    return promise;
  }, `${gateway.ws}/v1/ws`);
  assert.equal(protocol, "twinspan.v1.proto");
  assert.deepEqual(bytes, [0x42, 1, 0x70, 0xf2, 2, 3, 0x0a, 1, 0x78]);
});

test("a page that breaks off is told nothing and disturbs nobody", async () => {
  const [watcher, leaver] = [await examplePage("leave", "slow"), await examplePage("leave", "slow")];
  await leaver.click("button");
  await longerThan(watcher, 20);
  await leaver.close();
  await done(watcher);
  assert.equal(await text(watcher), worker.answer("HEA synthesis"));
});

test("the close code tells a page whether to connect again", async () => {
  const other = await startGateway({});
  const page = await blankPage();
  await page.evaluate((url) => {
    const { promise, resolve } = Promise.withResolvers();
    const socket = new WebSocket(url);
    window.frames_ = [];
    socket.onmessage = ({ data }) => {
      window.frames_.push(JSON.parse(data));
      resolve();
    };
    window.closed_ = new Promise((resolve) => (socket.onclose = ({ code, reason }) => resolve({ code, reason })));
    return promise;
  }, `${other.ws}/v1/ws?session_id=s`);
  assert.equal(await other.stop(), 0);
  const { code, reason } = await page.evaluate(() => window.closed_);
  assert.equal(code, 1012);
  assert.match(reason, /^SHUTDOWN/);
  const last = await page.evaluate(() => window.frames_.at(-1));
  assert.equal(last.goAway.error.reason, "DRAINING");
});
