"""What the process of `forked.py` does once, after its imports, for all processes that are forked from it."""

import gc

from glassmoe import config
from glassmoe.cli.training import training_parser

config.from_dict({})
for name in ("train", "upcycle"):
    training_parser(name)
gc.collect()
gc.freeze()  # a collection in a forked process would copy all memory that holds objects
