"""In and out: one delivery becomes one request, one outcome becomes that caller's answer."""
