"""The deployments compared: plan one to plan four, each started as its users start it."""
