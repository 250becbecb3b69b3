"""The networks in torch, the zoo that lists them, and their weights, read without running what a file says."""
