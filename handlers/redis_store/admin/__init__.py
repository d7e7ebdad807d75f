"""What operators need of Redis: ACL rules, checks of rights and types, the status board."""
