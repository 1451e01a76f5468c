"""The broker's face on gRPC: the calls, the wire bytes, errors as statuses."""
