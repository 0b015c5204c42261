"""Heads: the control plane that trains, checks and publishes versions, and (in `serving`) the data plane that answers."""
