"""Other forms of a request's body on its way to the gateway: one file each, one line in the registry."""
