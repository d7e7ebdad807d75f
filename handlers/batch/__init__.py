"""Run a file of requests as one batch, built on the client."""
