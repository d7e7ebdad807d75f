"""The layers around one attempt: admission, breaker, retry budget, tracing, metrics."""
