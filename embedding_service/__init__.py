"""The embedding service: a trunk that any service can share. Read downwards: service, server, infer, batching, queue."""
