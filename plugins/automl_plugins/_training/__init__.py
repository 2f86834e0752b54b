"""Training by gradient descent, shared by the trainers that do it, so that they all train alike."""
