"""What a command would do, and at what cost: ``drift-ray … --dry-run``."""
