"""Redis for operators: ACL rules, checks of rights and types, the status board."""
