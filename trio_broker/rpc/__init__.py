"""gRPC on trio: a sans-io HTTP/2 connection under purerpc's public interface. Knows no broker.

From the wire up: `frames`, `hpack`, `connection` (with `control`, `outbound` and `stream`), `request`, `call`,
`status`; then, on trio: `handlers`, `transport`, `server`. docs/RPC.md tells how to use it in another project.
"""
