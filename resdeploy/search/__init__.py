"""What needs several verbs at once: pruning, mixed precision."""
