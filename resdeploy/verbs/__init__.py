"""What each command does, one file per command and named as it, beside the details that only one of them needs."""
