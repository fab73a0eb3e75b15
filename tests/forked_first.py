"""What the process of `forked.py` does once, after its imports, for all processes that are forked from it."""

import gc

from glassmoe.cli.training import training_parser
from glassmoe.config import RunConfig
from glassmoe.config_values import parser_of
from glassmoe.training import run

parser_of(RunConfig).parse_object({})
for name in ("train", "upcycle"):
    training_parser(name)
run._packages()
gc.collect()
gc.freeze()  # a collection in a forked process would copy all memory that holds objects
