"""What holds for every test: one thread a process, and shapes that are checked as they are written."""

import os

# Before PyTorch is imported, because it reads this once. The tests' matrices are tiny, and two processes
# that spin waiting for each other's threads are some twenty times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# Every annotation of the package becomes a check while the tests run; users do not pay for it. Nothing
# may import the package before this line, or that module would stay unchecked.
install_import_hook("envariant", "beartype.beartype")
