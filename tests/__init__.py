"""The tests. Their matrices are small: threads of numpy's would spend more time waiting than computing."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
