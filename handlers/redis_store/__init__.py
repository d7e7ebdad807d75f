"""The only room that talks to Redis: one Lua file for one operation, one typed function for each."""
