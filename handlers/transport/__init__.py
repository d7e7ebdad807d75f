"""HTTP/1.1 to everything that we call: connections, their pool, and what comes back decoded."""
