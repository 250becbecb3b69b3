"""Data sets, the reading and decoding of images, and the preprocessing that turns them into inputs."""
