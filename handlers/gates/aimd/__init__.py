"""The AIMD gate: a congestion window driven by the gateway's answers."""
