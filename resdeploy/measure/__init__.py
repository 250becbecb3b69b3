"""Running models to learn something: times, predictions, the machine's state, and results saved and read again."""
