"""Build doors and poller from the settings. Only this package creates clients."""
