"""The configuration of a process, read once: environment and one optional file in, frozen options out."""
