"""Build doors and poller from the settings; only this package creates clients."""
