// The contract as a client on @grpc/grpc-js sees it: node main.js HOST:PORT PROTOS.
// Prints a line for each trial; exits 1 at the first that fails.
"use strict";

const assert = require("node:assert/strict");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const GZIP = grpc.compressionAlgorithms.gzip;

const definition = loader.loadSync("broker.proto", { includeDirs: [protos], keepCase: true, longs: String, oneofs: true });
const { Broker } = grpc.loadPackageDefinition(definition).broker;

function connect(options = {}) {
  return new Broker(address, grpc.credentials.createInsecure(), options);
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    const done = (error, response) => (error ? reject(error) : resolve(response));
    client[method](request, { deadline: Date.now() + PATIENCE_MS }, done);
  });
}

// Resolves when the subscription stands: its headers say so.
function subscribe(client, method, request, deadline_ms = PATIENCE_MS) {
  const stream = client[method](request, { deadline: Date.now() + deadline_ms });
  return new Promise((resolve, reject) => {
    stream.once("metadata", () => resolve(stream));
    stream.once("error", reject);
  });
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail("it did not fail");
}

async function collect(stream, count) {
  const found = [];
  for await (const message of stream) {
    found.push(message);
    if (found.length === count) break;
  }
  stream.on("error", () => {}).cancel(); // leaving the loop does not end the call
  return found;
}

const trials = {
  async what_is_published_is_delivered_in_order(client) {
    const stream = await subscribe(client, "Subscribe", { subject: "js.live" });
    const ids = [];
    for (const text of ["one", "two", "three"]) {
      ids.push((await unary(client, "Publish", { subject: "js.live", body: Buffer.from(text) })).id);
    }
    assert.deepEqual(ids, ["1", "2", "3"]);
    const messages = await collect(stream, 3);
    assert.deepEqual(messages.map((message) => message.id), ids);
    assert.deepEqual(messages.map((message) => message.body.toString()), ["one", "two", "three"]);
  },

  async what_is_kept_is_fetched(client) {
    const { id } = await unary(client, "Publish", { subject: "js.kept", body: Buffer.from("kept"), keep: true });
    const message = await unary(client, "Fetch", { subject: "js.kept", id });
    assert.equal(message.body.toString(), "kept");
  },

  async what_was_never_published_has_a_reason(client) {
    const error = await failure(unary(client, "Fetch", { subject: "js.none", id: "7" }));
    assert.equal(error.code, grpc.status.INVALID_ARGUMENT);
    assert.match(error.metadata.get("grpc-status-details-bin")[0].toString("latin1"), /INVALID_ID/);
  },

  async compressed_requests_arrive() {
    const client = connect({ "grpc.default_compression_algorithm": GZIP });
    const bodies = [Buffer.alloc(10), Buffer.alloc(3_000_000, "trio "), Buffer.alloc(0)];
    for (const body of bodies) {
      await unary(client, "Publish", { subject: "js.packed", body, keep: true });
    }
    for (const [place, body] of bodies.entries()) {
      assert.deepEqual((await unary(client, "Fetch", { subject: "js.packed", id: place + 1 })).body, body);
    }
    client.close();
  },

  async the_log_is_read_in_pages_to_its_end(client) {
    const count = 500;
    const body = Buffer.alloc(1000, "page ");
    const publish = () => unary(client, "Publish", { subject: "js.pages", body, keep: true });
    await Promise.all(Array.from({ length: count }, publish));
    const request = { subject: "js.pages", earliest: true, at_end: true };
    const pages = await collect(await subscribe(client, "SubscribeBatch", request));
    const messages = pages.flatMap((page) => page.messages);
    assert.deepEqual(messages.map((message) => Number(message.id)), Array.from({ length: count }, (_, place) => place + 1));
    assert.ok(messages.every((message) => message.body.equals(body)));
  },

  async a_subscription_ends_at_its_deadline(client) {
    const stream = await subscribe(client, "Subscribe", { subject: "js.quiet" }, 2000);
    const error = await failure(collect(stream));
    assert.equal(error.code, grpc.status.DEADLINE_EXCEEDED);
  },

  async a_subscription_can_be_cancelled(client) {
    const stream = await subscribe(client, "Subscribe", { subject: "js.quiet" });
    stream.cancel();
    const error = await failure(collect(stream));
    assert.equal(error.code, grpc.status.CANCELLED);
  },
};

async function main() {
  const client = connect();
  for (const [name, trial] of Object.entries(trials)) {
    await trial(client);
    console.log(`ok ${name}`);
  }
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
