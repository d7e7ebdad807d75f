"""Run uvicorn with the limits and the graceful shutdown that the doors need."""
