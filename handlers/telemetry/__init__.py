"""What people on call read: logs, metrics, traces."""
