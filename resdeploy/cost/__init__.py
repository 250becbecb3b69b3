"""`cost`: what a network computes and moves, by whose conventions, and what a machine allows it."""
