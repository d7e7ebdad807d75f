"""The configuration of a process: environment and optional file, read once."""
