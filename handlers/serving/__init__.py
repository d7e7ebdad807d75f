"""Run uvicorn with the limits and the shutdown that doors need."""
