"""What `package` copies into a folder: files that run without resdeploy, and so import nothing of it."""
