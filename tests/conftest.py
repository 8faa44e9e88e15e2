"""What every test runs under: one thread, no network, no account, and a cache of its own."""

import os
import signal
import tempfile

from jaxtyping import install_import_hook

# A shell starts what runs in its background with Ctrl-C ignored, and nohup what it starts with SIGHUP ignored. The
# trainings of the tests would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Before torch is imported by anything: two threads on two busy cores are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# Made data are made anew, and the user's own cache is neither trusted nor filled.
_cache = tempfile.TemporaryDirectory(prefix="relay-tests-")
os.environ["RELAY_CACHE"] = _cache.name


# The shapes that public functions of the models name are checked while tests run.
install_import_hook(
    ["recipes.text2sql.model", "recipes.text2sql.experts", "recipes.microbiome.model"], "beartype.beartype"
)


def pytest_unconfigure() -> None:
    """Remove the cache of this session."""
    _cache.cleanup()
