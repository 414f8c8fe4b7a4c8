"""The planner: where guests run, who goes where when hosts are lost, and how load is evened out, as pure functions.

It knows no cluster: `manager.scheduler` makes its values of what is stored, `gugus plan` of a file.
"""

import os

# numpy's OpenBLAS makes a thread for each processor when it is loaded; nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
