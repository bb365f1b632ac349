"""What runs requests: the scheduler, the thread that carries its steps out, sampling, speculation."""
