"""Python starts with this where it is on PYTHONPATH: without the packages that a server's image has not."""

import importlib.metadata
import sys

NOT_THERE = {"torch", "transformers", "peft", "bitsandbytes", "datasets", "flwr_datasets", "pyarrow", "tokenizers"}


class NotThere:
    """Finds none of them."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in NOT_THERE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def from_name(name, found=importlib.metadata.Distribution.from_name):
    if name.replace("-", "_") in NOT_THERE:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)


sys.meta_path.insert(0, NotThere)
importlib.metadata.Distribution.from_name = staticmethod(from_name)
