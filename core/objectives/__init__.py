"""What is minimised, and what is chosen to be trained: losses, distillation, selection during training."""
