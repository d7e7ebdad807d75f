"""The whole stack on one machine, for `demo`, `dev` and the tests."""
