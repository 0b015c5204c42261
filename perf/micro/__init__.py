"""Measuring one part by itself, nothing of the service around it."""
