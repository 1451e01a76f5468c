"""Side by side with a plain grpcio.aio server, in one run: see README.md."""
