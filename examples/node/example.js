// Publish and subscribe from Node. With a broker running (`make serve`), in this folder: npm install && node example.js
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const protos = path.join(__dirname, "..", "..", "protos");
const definition = loader.loadSync("broker.proto", { includeDirs: [protos], keepCase: true, longs: String, oneofs: true });
const { Broker } = grpc.loadPackageDefinition(definition).broker;
const client = new Broker(process.argv[2] ?? "127.0.0.1:50051", grpc.credentials.createInsecure());

const subscription = client.Subscribe({ subject: "orders.eu" });

// The headers say that the subscription stands: what is published from now on arrives.
subscription.on("metadata", () => {
  client.Publish({ subject: "orders.eu", body: Buffer.from("two cups"), expirationSeconds: 3600 }, (error, reply) => {
    if (error) throw error;
    console.log("published as", reply.id);
  });
});

subscription.on("data", (message) => {
  console.log("received", message.id, message.body.toString());
  subscription.cancel(); // a real one goes on
});

subscription.on("error", (error) => {
  if (error.code !== grpc.status.CANCELLED) throw error;
  client.close();
});
