"""Layers around one judge call: cache, retry, limits, votes and re-asks, event loop. Each is testable alone."""
