"""Here so that pytest puts this folder on sys.path: tests in the folders below import `builders` and `llamacpp`.

Triton decides at its import whether it interprets, and other libraries under test import it too: so it is told first.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
