"""The services behind the gateway, each with one or several replicas: which one is asked, and what happens when it fails."""
