"""The wiring: settings in, finished doors and poller out. The only room that builds clients."""
