"""Models and versions: the store they lie in, their states, and the repository that serves them."""
