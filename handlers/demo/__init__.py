"""The whole stack on one machine, for the commands `demo` and `dev`."""
