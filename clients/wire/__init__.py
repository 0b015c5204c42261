"""What travels between the services: messages, keys, limits, and the data that several of them read."""
