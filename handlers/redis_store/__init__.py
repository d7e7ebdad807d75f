"""Redis operations: one Lua file each, called by one typed function."""
