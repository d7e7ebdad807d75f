"""Gates that wrap or combine other gates."""
