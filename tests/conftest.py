"""What holds for every test: one thread a process."""

import os

# Before PyTorch is imported, because it reads this once. The tests' matrices are tiny, and two processes
# that spin waiting for each other's threads are some twenty times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
