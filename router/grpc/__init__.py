"""The serving side of gRPC, as far as gateways need it ([ADR 9](docs/adr/0009-picker.md)).

Pure: `frames`, `heads`, `messages`, `budget`. `call` is a call as its handler sees it, `connection`
a peer, `server` a port, `health` what answers health checks.
"""
