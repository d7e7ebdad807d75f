"""Redis: one Lua file per operation, one typed function for each."""
