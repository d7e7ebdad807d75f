"""Run a file of requests as one batch, with the client."""
