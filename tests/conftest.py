"""Before anything is imported: no test asks a server for a model."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
