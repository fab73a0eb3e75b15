"""Loading the files of a model that glassmoe trained, or of a causal language model of transformers, and the tokenizer
beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from glassmoe import config as configuration
from glassmoe.checksums import verify_tensors
from glassmoe.config import RunConfig
from glassmoe.text.gguf import from_pretrained, gguf_of
from glassmoe.text.tokens import load_tokenizer, loading_failure

from .families import UPCYCLED
from .prefix import load_prefix
from .upcycled import upcycled_classes

OWN = "glassmoe"
"""`model_type` of the models that glassmoe trains."""
UNFIT = ("missing_keys", "unexpected_keys", "mismatched_keys")


def foreign_settings(name: str) -> Any | None:
    """The configuration of another maker's model; None for one of glassmoe's own, and where nothing can be read, which
    loading then reports. ValueError for quantised weights, but those of a GGUF file, which become ordinary ones."""
    arguments = from_pretrained(name, trust_remote_code=False)
    try:
        with _quiet():
            settings = read_settings(name)
    except Exception as error:  # what transformers raises depends on where it stumbles
        if "trust_remote_code" in str(error) or "gguf_file" in arguments:
            raise _not_loaded(name, error) from None
        return None
    quantised = getattr(settings, "quantization_config", None)
    if quantised is not None and "gguf_file" not in arguments:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else quantised.quant_method
        raise ValueError(
            f"the weights of {name} are quantised ({getattr(method, 'value', method)}); give the model with ordinary "
            f"weights, or as a .gguf file, which is dequantised"
        )
    return None if is_own(settings) else settings


def is_own(settings: Any) -> bool:
    """Whether glassmoe trained the model of a configuration: as a decoder of its own, or with layers replaced."""
    return bool(settings.model_type == OWN or settings.model_type.startswith(UPCYCLED))


def read_settings(name: str) -> Any:
    """The configuration of a model of any kind. Whatever transformers raises when it cannot be read."""
    arguments = from_pretrained(name, trust_remote_code=False)
    if "gguf_file" not in arguments:
        model_type = str(PreTrainedConfig.get_config_dict(name)[0].get("model_type"))
        if model_type.startswith(UPCYCLED):
            upcycled_classes(model_type.removeprefix(UPCYCLED))  # known to transformers from now on
    return AutoConfig.from_pretrained(**arguments)


def load_own(name: str) -> tuple[Any, RunConfig | None]:
    """A model that glassmoe trained, and the configuration of its run where it has one."""
    path = Path(name)
    config = configuration.load(path / "config.yaml") if (path / "config.yaml").exists() else None
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(
            f"{path} is a run without a model yet; let `glassmoe train` reach its first checkpoint"
            if config
            else f"{path} is not a run: it has neither config.yaml nor config.json; "
            f"give what `glassmoe train --out` made"
        )
    if not path.exists() and (
        path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.parent.is_dir()
    ):
        raise ValueError(f"there is no run at {path}; give what `glassmoe train --out` made")
    if path.is_file():
        raise ValueError(f"{path} is a file; give the run directory that `glassmoe train --out` made")
    try:
        for file in sorted(path.glob("*.safetensors")):
            verify_tensors(file)
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        wrong = [f"{what.replace('_', ' ')} {min(report[what])}" for what in UNFIT if report[what]]
        if wrong:
            raise ValueError(f"its weights do not fit its config.json ({'; '.join(wrong)})")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        # What transformers raises for a damaged file depends on where it stumbles.
        where = "" if path.exists() else f"there is no run at {path}, and as a model on the hub "
        advice = (
            "the `glassmoe train` command of the run writes its model files again from the newest checkpoint"
            if config
            else "give what `glassmoe train --out` made"
        )
        raise ValueError(f"{where}{name} could not be loaded: {str(error).partition(chr(10))[0]}; {advice}") from error
    return model, config


@dataclass(frozen=True)
class Loading:
    """How a model of transformers is loaded."""

    dtype: str = "float32"
    """Type of its weights; `auto`: as its files have them."""
    device_map: str | None = None
    """Over which devices accelerate spreads it, such as `auto`; None: one device."""
    prefix: bool = False
    """Whether it is loaded up to the last layer that is read only."""

    @property
    def usual(self) -> bool:
        return self == Loading()

    def options(self) -> dict[str, Any]:
        """As `from_pretrained` takes them. ValueError where accelerate is missing."""
        if self.device_map is not None and find_spec("accelerate") is None:
            raise ValueError(
                'device_map needs the package accelerate; install it with: pip install "glassmoe[devices]", or leave '
                "device_map out and load less with prefix"
            )
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        return {"dtype": dtype, **({} if self.device_map is None else {"device_map": self.device_map})}


def load_foreign(name: str, how: Loading | None = None, blocks: int | None = None) -> Any:
    """A causal language model of transformers, in float32 unless `how` says otherwise. `blocks`: its first blocks
    alone. ValueError, in one sentence, when it is not all there, or not all of it fits on the devices."""
    how = how or Loading()
    options = how.options()
    if blocks is not None and gguf_of(name) is not None:
        raise ValueError(f"the blocks of the GGUF file {name} cannot be loaded by themselves; open it without prefix")
    if blocks is not None:
        try:
            with _quiet():
                model, missing = load_prefix(name, read_settings(name), blocks, options)
        except ValueError:
            raise
        except Exception as error:  # as above
            raise _not_loaded(name, error) from None
        return _complete(name, model, missing, how, f"{model.base_model_prefix}.")
    arguments = from_pretrained(name, **options, trust_remote_code=False, output_loading_info=True)
    if "gguf_file" in arguments:
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(**arguments)
    except Exception as error:  # as above
        raise _not_loaded(name, error) from None
    vars(model.config).pop("quantization_config", None)  # its weights are ordinary ones now
    return _complete(name, model, sorted(report["missing_keys"]), how)


def _complete(name: str, model: Any, missing: list[str], how: Loading, inside: str = "") -> Any:
    """The model itself. ValueError when weights are missing, or are on no device."""
    if missing:
        raise ValueError(
            f"{name} lacks weights ({missing[0]} and {len(missing) - 1} others); give a folder with all of them"
        )
    away = [key for key, p in model.named_parameters() if p.is_meta and key.startswith(inside)]
    if away:
        raise ValueError(
            f"{name} does not fit on the devices of device_map {how.device_map!r}: {away[0]} and {len(away) - 1} other "
            f"weights would be moved in and out; load less with prefix, or in a smaller dtype"
        )
    return model


def _not_loaded(name: str, error: Exception) -> ValueError:
    what = "a GGUF file" if gguf_of(name) else "a model with config.json and weights,"
    return ValueError(
        f"{name} could not be loaded: {loading_failure(error)}; give {what} of a family that transformers has"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it transformers reports nothing, and it shows no bars from then on."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        # Its reader of GGUF files draws a bar of its own.
        with redirect_stderr(StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def tokenizer_of(name: str) -> tuple[str, str] | None:
    """The JSON of the tokenizer beside a model's weights, and the token with which its texts begin; None where there is
    none."""
    folder = Path(name)
    if (
        folder.is_dir()
        and gguf_of(name) is None
        and not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model"))
    ):
        return None
    try:
        return load_tokenizer(name)
    except ValueError:
        return None
