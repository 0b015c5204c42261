"""The gateway: raw text in, labels out. Read downwards: app, routes, pipeline, coalesce, ports, errors."""
