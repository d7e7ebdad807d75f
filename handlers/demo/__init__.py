"""The whole stack on one machine, for a first look; used by the command line only."""
